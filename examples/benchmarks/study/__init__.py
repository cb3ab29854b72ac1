"""Parts of the comparison at equal cost: see `examples/benchmarks/mixed_quality.py`."""
