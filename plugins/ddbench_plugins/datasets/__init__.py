"""Built-in data sets, one file each."""
