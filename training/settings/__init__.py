"""How to erase: every setting of a training once, in five groups, with its default, range, help and what it affects.

What nodes, command line, routes, resume rules, benchmarks and documentation say of settings is derived from SETTINGS.
"""

from .config import GROUPS, OF_KIND, SETTINGS, ErasureConfig, names_affecting
from .field import Affects, Setting
from .lora import BLOCKS, TARGETS, target_blocks

__all__ = [
    "BLOCKS",
    "GROUPS",
    "OF_KIND",
    "SETTINGS",
    "TARGETS",
    "Affects",
    "ErasureConfig",
    "Setting",
    "names_affecting",
    "target_blocks",
]
