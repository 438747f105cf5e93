"""Names that a LoRA's file may have on every system."""

from __future__ import annotations

import re

from ..errors import ConfigError

# Names that Windows keeps for devices: a file of that stem cannot be written there.
_DEVICES = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))}


def validate_name(name: str) -> str:
    """`name` if it can be a LoRA's file stem on every system (no path parts); raises ConfigError otherwise."""
    if (
        not isinstance(name, str)
        or not re.fullmatch(r"[\w][\w .()+-]{0,99}", name)
        or name.endswith((".", " "))
        or name.split(".")[0].strip().lower() in _DEVICES
    ):
        raise ConfigError(
            f"{name!r} cannot be a LoRA's name: use at most 100 letters, digits, spaces and . _ - + ( ), no folders."
        )
    return name
