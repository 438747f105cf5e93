"""Whether a queued job may start: only when its device has as much memory free as the job is estimated to need."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..errors import ErasureError
from ..memory import free_memory
from .job import Job
from .kinds import MemoryPlan
from .registry import kind_of

ASK_SECONDS = 60  # between two requests to the host to free memory for one job: each costs its prompts a reload
PATIENCE_SECONDS = 30  # for the host to free what the fastest plan needs, before one that needs less is taken
SENTENCE_SECONDS = 5  # between two changes of the sentence about a waiting job
LOADED = ("train", "samples", "save")  # phases in which a training has taken the memory it needs


class Admission:
    """Asks the host to free memory, and says why a job must wait.

    Args:
        make_room: Called for a job before it starts, and again from time to time while it waits. It may return before
            the memory is free.
        free: The bytes that are free on a device; None where they are not known.
    """

    def __init__(
        self, make_room: Callable[[Job], None] | None = None, free: Callable[[str], int | None] = free_memory
    ) -> None:
        self._make_room, self._free = make_room, free
        self._asked: dict[str, float] = {}  # when the host was asked to make room for a job
        self._plans: dict[str, list[MemoryPlan]] = {}  # a job's request never changes, nor does its model
        self._short_since: dict[str, float] = {}  # when a job's fastest plan was first found not to fit
        self._sentences: dict[str, tuple[float, str]] = {}  # why a job waits, and since when it is said

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
            rivals = [other for other in loading if other.request["device"] == job.request["device"]]
            free -= sum(self._chosen(other).need for other in rivals)
            fastest, least = self._chosen(job), min(self._plans_of(job), key=lambda plan: plan.need)
            since = self._short_since.setdefault(job.id, now)
            if fastest.need <= free or (least.need <= free and now - since >= PATIENCE_SECONDS):
                self._sentences.pop(job.id, None)
                return ""
            said_at, why = self._sentences.get(job.id, (now - SENTENCE_SECONDS, ""))
            if now - said_at >= SENTENCE_SECONDS:
                short = fastest if least.need <= free else least
                why = kind_of(job.request).shortage(short, max(free, 0))
                self._sentences[job.id] = (now, why)
            return why
        except (ErasureError, OSError):
            return ""  # the worker says what is wrong with the model or the request

    def started(self, job_id: str) -> None:
        """Forgets a job that has started: when it is resumed the host is asked again."""
        self._asked.pop(job_id, None)
        self._sentences.pop(job_id, None)
        self._short_since.pop(job_id, None)

    def _plans_of(self, job: Job) -> list[MemoryPlan]:
        if job.id not in self._plans:
            kind = kind_of(job.request)
            self._plans[job.id] = kind.need(kind.read(job.request))
        return self._plans[job.id]

    def _chosen(self, job: Job) -> MemoryPlan:
        return kind_of(job.request).chosen(self._plans_of(job), job.folder.path)
