"""The command line: its arguments, its commands, and the training that `quantize` runs."""
