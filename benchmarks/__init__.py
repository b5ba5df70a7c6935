"""Benchmarks: each figure is taken in one run on one machine, with an ordinary way of doing the same beside it.

Absolute times of a shared machine are noise; ratios of one run are not. `python -m benchmarks` runs them all.
"""
