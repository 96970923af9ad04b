"""Built-in rankers: what chooses among iterates and stages."""
