"""Whether a queued job may start: only when its device has as much memory free as the training is estimated to need."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..errors import ErasureError
from ..memory import MemoryPlan as Way
from ..memory import free_memory
from ..memory import load_plan as decided
from .store import Job
from .work import request_of, ways_of, why_short

ASK_SECONDS = 60  # between two requests to the host to free memory for one job: each costs its prompts a reload
PATIENCE_SECONDS = 30  # for the host to free what the fastest way needs, before one that needs less is taken
TELL_SECONDS = 5  # between two changes of the sentence about a waiting job
LOADED = ("train", "samples", "save")  # phases in which a training has taken the memory it needs


class Admission:
    """Asks the host to free memory, and says why a job must wait.

    make_room: called for a job before it starts and now and then while it waits; what it frees may come later. free:
    the bytes that are free on a device, None where that cannot be told.
    """

    def __init__(
        self, make_room: Callable[[Job], None] | None = None, free: Callable[[str], int | None] = free_memory
    ) -> None:
        self._make_room, self._free = make_room, free
        self._asked: dict[str, float] = {}
        self._ways: dict[str, list[Way]] = {}  # a job's request never changes, nor does its model
        self._short: dict[str, float] = {}  # since when a job's fastest way does not fit
        self._told: dict[str, tuple[float, str]] = {}

    def why_wait(self, job: Job, active: Sequence[Job], check: bool = True) -> str:
        """One sentence, or "" where it may start. `active`: the jobs that train now, or are about to.

        check: off, the host is asked to free memory, but nobody waits for it.
        """
        now = time.monotonic()
        if self._make_room is not None and now - self._asked.get(job.id, -ASK_SECONDS) >= ASK_SECONDS:
            self._asked[job.id] = now
            self._make_room(job)
        if not check:
            return ""
        try:
            free = self._free(job.request["device"])
            if free is None:
                return ""
            # What others have not taken yet is as good as gone.
            loading = [other for other in active if other.state.phase not in LOADED]
            near = [other for other in loading if other.request["device"] == job.request["device"]]
            free -= sum(decided(self._found(other), other.folder.path).need for other in near)
            found = self._found(job)
            fastest, least = decided(found, job.folder.path), min(found, key=lambda way: way.need)
            since = self._short.setdefault(job.id, now)
            if fastest.need <= free or (least.need <= free and now - since >= PATIENCE_SECONDS):
                self._told.pop(job.id, None)
                return ""
            told, why = self._told.get(job.id, (now - TELL_SECONDS, ""))
            if now - told >= TELL_SECONDS:
                short = fastest if least.need <= free else least
                why = why_short(short.request, max(free, 0))
                self._told[job.id] = (now, why)
            return why
        except (ErasureError, OSError):
            return ""  # the worker says what is wrong with the model or the request

    def started(self, job_id: str) -> None:
        """Forgets a job that has started: when it is resumed the host is asked again."""
        self._asked.pop(job_id, None)
        self._told.pop(job_id, None)
        self._short.pop(job_id, None)

    def _found(self, job: Job) -> list[Way]:
        if job.id not in self._ways:
            self._ways[job.id] = ways_of(request_of(job.request))
        return self._ways[job.id]
