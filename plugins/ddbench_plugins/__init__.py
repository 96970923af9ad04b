"""The built-in plugins. Each is one file and one line in pyproject.toml, exactly as a stranger's would be."""
