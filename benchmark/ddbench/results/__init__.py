"""The store: what was computed, kept so that it can be trusted."""
