"""How to erase: every setting of a training once, in five groups, with its default, range, help and what it affects.

What nodes, command line, routes, resume rules, benchmarks and documentation say of settings is derived from SETTINGS.
"""

from .config import SETTINGS, ErasureConfig, names_affecting
from .lora import TARGETS, target_blocks

__all__ = [
    "SETTINGS",
    "TARGETS",
    "ErasureConfig",
    "names_affecting",
    "target_blocks",
]
