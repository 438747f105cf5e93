"""The bars of bars.toml, judged by the summaries."""

from __future__ import annotations

import operator
import string
import sys
from pathlib import Path
from typing import Any

from .full_size import full_size, long_training
from .table import Summary

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("bars.toml")
OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq}
SIGNS = {True: "met", False: "missed", None: "not measured"}

Bar = tuple[str, bool | None, str]  # what is asked, whether it is met (None: not measured), the numbers


def bars(results: dict[str, Summary]) -> list[Bar]:
    """What was set as a bar, judged strictly: a figure that is over its limit by any amount misses it.

    Args:
        results: summaries by the name of their experiment.
    """
    more = {"full_size": full_size(results.get("train") or {})}
    more["long_training"] = long_training(results.get("endurance") or [])
    found = []
    for bar in tomllib.loads(FILE.read_text(encoding="utf-8"))["bar"]:
        each = bar.get("each", [""])
        if isinstance(each, str):
            each = list(_metric(each, results) or ["each"])
        found += [judged(bar, name, {**results, **more}) for name in each]
    return found


def judged(bar: dict[str, Any], each: str, results: dict[str, Summary]) -> Bar:
    """One bar, with `each` in the place of "$each". A clause whose figures are not there counts for nothing."""
    verdicts, numbers, clauses = [], [], bar.get("clause", [bar])
    for clause in clauses:
        conditions = [[_named(part, each) for part in condition] for condition in clause["need"]]
        verdict = _holds(conditions, results)
        if verdict is None:
            continue
        verdicts.append(verdict)
        shown = _shown(_named(clause["show"], each), results)
        numbers.append(f"{clause['name']}: {shown} ({SIGNS[verdict]})" if len(clauses) > 1 else shown)
    combine = all if bar.get("combine") == "all" else any
    return _shown(_named(bar["text"], each), results), combine(verdicts) if verdicts else None, "; ".join(numbers)


def _named(part: Any, each: str) -> Any:
    return part.replace("$each", each) if isinstance(part, str) else part


def _holds(conditions: list[list[Any]], results: dict[str, Summary]) -> bool | None:
    """Whether all of [metric, operator, limit or limit's metric, what is added to it] hold; None: not measured."""
    held = []
    for path, sign, limit, *more in conditions:
        value = _metric(path, results)
        limit = _metric(limit, results) if isinstance(limit, str) else limit
        if value is _ABSENT or limit is _ABSENT:
            return None
        held.append(value is not None and OPERATORS[sign](value, limit + more[0] if more else limit))
    return all(held)


_ABSENT: dict = {}


def _metric(path: str, results: dict[str, Summary]) -> Any:
    """What is at a path such as "erasure[esd][nouns][asked]"; `_ABSENT` where there is nothing."""
    try:
        return string.Formatter().get_field(path, (), results)[0]
    except (KeyError, IndexError, TypeError):
        return _ABSENT


def _shown(text: str, results: dict[str, Summary]) -> str:
    """The text with the metrics in braces as figures; what is not there is a dash."""
    parts = []
    for before, path, form, _ in string.Formatter().parse(text):
        value = _metric(path, results) if path else ""
        figure = "–" if value is _ABSENT else format(value, form or "")
        parts.append(before + (figure.replace("%", " %") if form else figure))
    return "".join(parts)
