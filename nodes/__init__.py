"""The floor that users touch: thin ComfyUI nodes, one file per theme, each with its NODES."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from .compat import io

# Gathered by file, so that a new theme is a new file; types, compat and native hold no nodes.
NODES: list[type[io.ComfyNode]] = [
    node
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if path.stem != "__init__"
    for node in getattr(import_module(f".{path.stem}", __name__), "NODES", [])
]
