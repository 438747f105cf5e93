"""The engine: erases concepts from Flux. Imports no ComfyUI; usable from a worker, a test or a notebook."""

__version__ = "0.1.0"

# What the engine computes: raised, on purpose, whenever the tensors of tests/engine/test_behaviour.py move beyond its
# tolerance. Rows of benchmarks carry it; they are stale when it has moved on, not when a comment has.
BEHAVIOUR = 2
