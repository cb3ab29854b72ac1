"""What `fit` does: the objective, the search and its schedule, the optimizers, distillation."""
