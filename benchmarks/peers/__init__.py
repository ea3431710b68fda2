"""The package's loop beside what people would use in its place; `python -m benchmarks.peers`."""
