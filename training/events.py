"""Events that a training reports as plain dicts: these two have one form wherever they come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Report = Callable[[dict[str, Any]], None]


def phase(name: str, message: str) -> dict[str, Any]:
    """What the training does from now on: "encode", "bank", "train", "samples" or "save", and a few words."""
    return {"type": "phase", "phase": name, "message": message}


def notice(message: str) -> dict[str, Any]:
    """A sentence about a decision, or about what went otherwise than it should have and what is done about it."""
    return {"type": "notice", "message": message}
