"""Small and fast, and proved so: pruning, token merging, distillation, export and quantisation."""
