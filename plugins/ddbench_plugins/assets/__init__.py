"""Files that users bring, one module a family."""
