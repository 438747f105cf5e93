"""Writes the tables of training settings in the help page of Train Erasure LoRA, from what the settings declare.

.venv/bin/python scripts/settings_page.py
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "web" / "docs" / "EraseAnything_Train" / "en.md"
BEGIN, END = "<!-- settings: written by scripts/settings_page.py -->", "<!-- end of settings -->"

TITLES = {
    "method": "Method: how the concept is erased",
    "lora": "LoRA: which weights are learned",
    "data": "Data: what is learned from",
    "memory": "Memory: how the device is used",
    "output": "Output: what is left on the way",
}
CHANGES = {"bank": "bank, LoRA", "weights": "LoRA", "output": "—"}
WIDGETS = {"seed": "training_seed"}  # the node's names for settings, where they are others


def tables() -> str:
    """A table for each group of settings, in Markdown."""
    sys.path[:0] = [str(ROOT)]
    from training.settings import SETTINGS

    lines = []
    for group, settings in groupby(SETTINGS.values(), key=lambda setting: setting.group):
        lines += [
            "",
            f"### {TITLES[group]}",
            "",
            "| Input | Default | Values | Meaning | Changes |",
            "|---|---|---|---|---|",
        ]
        for setting in settings:
            default = "empty" if setting.default in ("", ()) else json.dumps(setting.default).strip('"')
            name = WIDGETS.get(setting.name, setting.name)
            lines.append(
                f"| **{name}** | {default} | {setting.allowed} | {setting.help} | {CHANGES[setting.affects]} |"
            )
    return "\n".join([*lines[1:], ""])


def with_tables(page: str) -> str:
    """The page with the tables as they should be now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
