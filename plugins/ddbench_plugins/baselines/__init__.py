"""Built-in baselines: sets that are made without a matching loss."""
