"""The grids that ship with ddbench, as TOML."""
