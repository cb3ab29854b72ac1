"""What `fit` does: objective, search, schedule, optimizers, distillation."""
