"""Everything that computes: runs, training, distillation, ranking, shared resources."""
