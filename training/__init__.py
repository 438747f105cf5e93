"""The engine: erases concepts from Flux. Imports no ComfyUI; usable from a worker, a test or a notebook."""

__version__ = "0.1.0"
