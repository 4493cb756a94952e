"""Benchmarks: `python -m bench [NAME...]`, or `make bench`.

Each module NAME.py has `run() -> dict`, which prints its tables as it goes and returns what bench/results/NAME.json is
to hold. Rivals are measured in the same run, on the same machine.
"""
