"""Strategies against each other, against the bare driver, and against peers. `python -m benchmarks --help`."""
