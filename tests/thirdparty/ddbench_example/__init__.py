"""An example of a plugin package outside ddbench."""
