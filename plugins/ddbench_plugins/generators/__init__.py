"""Built-in generators, one file each."""
