"""The judging of finished sets. Only this package opens the sealed test split."""
