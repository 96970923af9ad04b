"""A TOML grid read into plans with all its faults at once: the reader, presets, selection."""
