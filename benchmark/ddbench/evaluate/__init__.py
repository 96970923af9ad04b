"""The judging of finished sets. Only it, and the job that asks for it, see the sealed test split."""
