"""evaluation.json, the result of an evaluation: which version this pack writes and reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ErasureError

FORMAT = "erase-anything evaluation"
VERSION = 1


def read_evaluation(folder: Path) -> dict[str, Any]:
    """The content of a folder's evaluation.json. Raises ErasureError where there is none of this version."""
    try:
        found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ErasureError(f"{folder.name} holds no finished evaluation: run `evaluate` there to its end.") from None
    except (OSError, ValueError):
        raise ErasureError(f"The evaluation.json in {folder.name} cannot be read: run the evaluation again.") from None
    require_version(found)
    return found


def require_version(found: Any) -> None:
    """Raises ErasureError unless this is an evaluation of the version that this pack reads."""
    if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("version") != VERSION:
        raise ErasureError(f"This is no evaluation of version {VERSION}: make it with this version of Erase Anything.")
