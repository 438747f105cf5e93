"""What the README claims, measured on the demo model: `python -m benchmarks` in the venv, or scripts/bench.py."""
