"""The benchmarks of scripts/bench.py: one file per command, and what they share."""
