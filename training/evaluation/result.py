"""evaluation.json, the result of an evaluation: which versions this pack reads, and how it reads an earlier one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ErasureError

FORMAT = "erase-anything evaluation"
VERSION = 2
SUITES_OF_VERSION_1 = {
    "concept": "acc_e",
    "synonyms": "acc_g",
    "preserved unseen": "acc_ir",
    "preserved seen": "acc_ir_seen",
}


def read_evaluation(folder: Path) -> dict[str, Any]:
    """The content of a folder's evaluation.json, as of this version.

    Raises:
        ErasureError: Where there is none that this version reads.
    """
    try:
        found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ErasureError(f"{folder.name} holds no finished evaluation: run `evaluate` there to its end.") from None
    except (OSError, ValueError):
        raise ErasureError(f"The evaluation.json in {folder.name} cannot be read: run the evaluation again.") from None
    return upgraded(found)


def upgraded(found: Any) -> dict[str, Any]:
    """An evaluation of this version or an earlier one, as of this version.

    Raises:
        ErasureError: Where it is none, or of a later version.
    """
    known = isinstance(found, dict) and found.get("format") == FORMAT
    if not known or found.get("version") not in (1, VERSION):
        raise ErasureError(
            f"This is no evaluation of version 1 to {VERSION}: make it with this version of Erase Anything."
        )
    if found["version"] == VERSION:
        return found
    try:
        return _from_version_1(found)
    except (KeyError, TypeError, AttributeError) as error:
        raise ErasureError("The evaluation's content is damaged: run the evaluation again.") from error


def _from_version_1(found: dict[str, Any]) -> dict[str, Any]:
    """Version 1 called its suites by other names and did not say which role they have."""
    roles = {each["id"]: each["kind"] for each in found.get("prompt_files", ())}

    def named(id: str) -> str:
        return SUITES_OF_VERSION_1.get(id, id)

    def suite(old: dict[str, Any]) -> dict[str, Any]:
        id = named(old["id"])
        group = next((group for group in ("attack", "part", "file") if id.startswith(f"{group} ")), "")
        other = "keep" if old["better"] == "higher" else "erase"
        role = {"acc_g": "generalise"}.get(id) or roles.get(id) or ("attack" if group == "attack" else other)
        return {**old, "id": id, "role": role, "group": group}

    result = {**found, "version": VERSION, "suites": [suite(old) for old in found["suites"]]}
    result["pictures"] = [{**row, "suites": [named(id) for id in row["suites"]]} for row in found["pictures"]]
    result["attacks_succeeded"] = {
        subject: [{**each, "suite": named(each["suite"])} for each in some]
        for subject, some in found["attacks_succeeded"].items()
    }
    result["strength"] = [
        {"subject": curve["subject"], "values": curve["values"], "acc_e": curve["concept"], "keep": curve["kept"]}
        for curve in found["strength"]
    ]
    if "detectors" in found:
        result["detectors"] = [
            {**judge, "suites": [{**table, "id": named(table["id"])} for table in judge["suites"]]}
            for judge in found["detectors"]
        ]
    return result
