"""The Erasure Report: one HTML page out of a finished evaluation, which opens from a disk without a network."""

from __future__ import annotations

import base64
import hashlib
import json
import unicodedata
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from ...errors import ErasureError
from ..pictures import write_whole
from ..result import upgraded
from .view import ROWS, View, fitting

__all__ = ["LIMIT", "ROWS", "write_report"]

LIMIT = 4_500_000  # bytes of a page; pictures that would pass it are counted instead
ATTACKS_ROOM = 1_500_000  # bytes of it for pictures of white-box attacks
LONGEST = 300  # characters of a text out of a file that are shown
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, jinja2.TemplateError)


def write_report(evaluation: dict[str, Any], folder: Path, out: Path) -> None:
    """Writes the page of an evaluation (the content of evaluation.json) whose pictures are in `folder`, atomically.

    Every text is escaped and every picture is a thumbnail inside the page, under LIMIT bytes in all.

    Raises:
        ErasureError: For a later version, for pictures that are missing or broken, and for content that makes no sense.
    """
    evaluation = upgraded(evaluation)
    try:
        page = _page(View(evaluation, folder))
    except DAMAGED as error:
        raise ErasureError("The evaluation's content is damaged: run the evaluation again.") from error
    data = page.encode("utf-8", "replace")
    if len(data) > LIMIT + 100_000:
        raise ErasureError("The evaluation has too many rows for one page: evaluate fewer LoRAs at once.")
    write_whole(out, data)


def _page(view: View) -> str:
    style, script = (Path(__file__).with_name(f"report.{end}").read_text(encoding="utf-8") for end in ("css", "js"))
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
    context: dict[str, Any] = {
        "view": view,
        "e": view.evaluation,
        "style": style,
        "script": script,
        "policy": f"{policy}base-uri 'none'; form-action 'none'",
    }
    macros: Any = _templates().get_template("macros.html").make_module(context)  # its macros are its attributes
    attacks = {
        (attack["subject"], number): [partial(macros.attack_row, attack, sides) for sides in attack.get("pictures", [])]
        for number, attack in enumerate(view.evaluation["white_box"])
    }
    context["attack_rows"] = {subject: [] for subject in view.labels}
    for (subject, _), rows in fitting(attacks, ATTACKS_ROOM).items():
        context["attack_rows"][subject] += rows
    page = _templates().get_template("page.html")
    used = len(page.render(**context, grids_shown=[]).encode("utf-8", "replace"))
    chosen = view.grids()
    rows_of = {
        id: [partial(macros.row, row, view.suites[id]["better"]) for row in rows] for id, (rows, _) in chosen.items()
    }
    made = fitting(rows_of, LIMIT - used)
    return page.render(
        **context, grids_shown=[(view.suites[id]["title"], rows, chosen[id][1]) for id, rows in made.items()]
    )


@cache
def _templates() -> jinja2.Environment:
    """The templates beside this file. What they print is escaped and in one line, but for markup of our own."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else line(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"line": line, "percent": percent, "json": partial(json.dumps, ensure_ascii=False)}
    return found


def line(value: object, longest: int = LONGEST) -> Markup:
    """A text out of a file: escaped, in one line, without control characters, `longest` at most."""
    text = " ".join(str(value).split())
    text = text if len(text) <= longest else f"{text[:longest]}…"
    return escape("".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in text))


def percent(share: float) -> Markup:
    """A share as a percentage, with a decimal only where it says something."""
    return Markup(f"{100 * float(share):.1f}".removesuffix(".0") + "\u00a0%")


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
