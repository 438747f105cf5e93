"""The kinds of jobs that there are, by the name that their requests carry as "kind" (a training's carry none)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import JobOfOtherVersion
from .evaluation_kind import EvaluationKind
from .kinds import JobKind, Report, Request
from .training_kind import TrainingKind

KINDS: dict[str, JobKind[Any]] = {kind.name: kind for kind in (TrainingKind(), EvaluationKind())}


def kind_of(data: dict[str, Any]) -> JobKind[Any]:
    """The kind of job that a request's JSON is for. Raises JobOfOtherVersion for one that is not known here."""
    kind = KINDS.get(data.get("kind", TrainingKind.name))
    if kind is None:
        raise JobOfOtherVersion("The job is of a kind that this version of the pack does not know: update the pack.")
    return kind


def request_of(data: dict[str, Any]) -> Request:
    """The request out of its JSON. Raises ErasureError's subclasses."""
    return kind_of(data).read(data)


def run(request: Request, folder: Path, report: Report, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """Does what a request asks for: see JobKind.run."""
    return kind_of(request.to_dict()).run(request, folder, report, should_stop)
