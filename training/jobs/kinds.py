"""What a kind of job must offer: what it needs in memory, how it runs, what it makes, and how it is made again.

A new kind is a class with the methods of JobKind, entered in registry.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..memory import MemoryPlan

if TYPE_CHECKING:
    from .job import Job

Report = Callable[[dict[str, Any]], None]


class Request(Protocol):
    """What a job is asked to do: plain data, which `to_dict` and JobKind.read carry through JSON."""

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str: ...

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it, with "name", "device", "source", "concept" and "output_folder"."""

    def validate(self) -> None:
        """Checks it without reading a model's weights. Raises ErasureError's subclasses."""


R = TypeVar("R", bound=Request)  # a kind's own request


@dataclass(frozen=True)
class Cheaper:
    """A request that needs less memory, what it changes in words, and what takes a failed job's files over."""

    request: Request
    change: str
    fill: Callable[[Path], None]


class JobKind(Protocol[R]):
    """One kind of job. Methods without a Raises raise ErasureError's subclasses for a request that cannot be done."""

    name: str
    makes_lora: bool  # whether the product is a LoRA

    def read(self, data: dict[str, Any]) -> R:
        """The request out of its JSON."""

    def steps(self, request: R) -> int:
        """Steps until it is done; 0 where nobody knows yet."""

    def need(self, request: R) -> list[MemoryPlan]:
        """Every plan for it, with the bytes that must be free on its device, the fastest first; at least one."""

    def chosen(self, plans: list[MemoryPlan], folder: Path) -> MemoryPlan:
        """The plan that the job in `folder` runs by; the fastest before it has begun."""

    def shortage(self, plan: MemoryPlan, free: int) -> str:
        """Why a plan does not fit into `free` bytes, as one sentence; empty where it fits."""

    def cheaper(self, request: R, folder: Path, phase: str) -> Cheaper | None:
        """What would need less than the job in `folder` did when its memory ran out in `phase`."""

    def run(self, request: R, folder: Path, report: Report, should_stop: Callable[[], bool]) -> dict[str, Any]:
        """Does it in the job folder `folder`, reporting events; goes on from what an earlier run has left there.

        Returns what result.json shall hold. Raises trainer.Stopped soon after `should_stop` has returned True.
        """

    def product(self, data: dict[str, Any], folder: Path) -> Path:
        """The file that the job in `folder` makes of a request's JSON."""

    def claim(self, request: R, jobs: Sequence[Job]) -> None:
        """Raises JobError where a new job among `jobs` may not write its product, or there is no room for it."""

    def reclaim(self, job: Job, jobs: Sequence[Job]) -> None:
        """Raises JobError where a job that shall go on may no longer write its product."""

    def with_free_name(self, request: R, jobs: Sequence[Job]) -> R:
        """The request, its name with a number where that is taken."""

    def again(self, request: R, settings: dict[str, Any], name: str, jobs: Sequence[Job]) -> R:
        """The request of a new job like this one, with other settings; without any it differs in its seed.

        name: empty where one is to be chosen. jobs: all that exist.
        """


def digest_of(request: Request) -> str:
    """SHA-256 over the request's JSON: equal exactly for equal requests."""
    return hashlib.sha256(json.dumps(request.to_dict(), sort_keys=True).encode()).hexdigest()
