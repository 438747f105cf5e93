"""The queue of a repository's jobs: the order that was given to them by hand, and how they are worked off.

Both are in queue.json, with one writer at a time (whoever holds the repository's lock): they survive a restart.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ErasureError, JobError, JobOfOtherVersion
from ..files import read_json_or_none, write_json
from ..lora.names import validate_name
from .job import Job
from .repository import JobRepository

VERSION = 1  # of the file's layout
MAX_SLOTS = 16
PLACES = ("first", "up", "down", "last")


@dataclass(frozen=True)
class QueueSettings:
    """How queued jobs are started.

    slots: how many train at once, 0 to MAX_SLOTS; 0 holds the queue, nothing new starts. wait_for_memory: whether a job
    waits until its estimated memory is free; off: it starts whatever the estimate says. lora_folder: where below the
    LoRAs' folder new jobs write theirs, parts divided by "/"; empty: into that folder itself.
    """

    slots: int = 1
    wait_for_memory: bool = True
    lora_folder: str = ""

    def changed(self, **changes: Any) -> QueueSettings:
        """With other values, validated; None leaves a value as it is. Raises JobError, ConfigError for the folder."""
        new = replace(self, **{name: value for name, value in changes.items() if value is not None})
        if not isinstance(new.slots, int) or isinstance(new.slots, bool) or not 0 <= new.slots <= MAX_SLOTS:
            raise JobError(f"The number of slots must be a whole number from 0 to {MAX_SLOTS}, not {new.slots!r}.")
        if not isinstance(new.wait_for_memory, bool):
            raise JobError("wait_for_memory must be true or false.")
        return replace(new, lora_folder=_folder(new.lora_folder))

    def to_dict(self) -> dict[str, Any]:
        """As JSON for clients."""
        return asdict(self)


def _folder(path: object) -> str:
    """A folder below another one, as queue.json stores it. Raises ConfigError where it could lead out of that."""
    parts = [part for part in str(path).replace("\\", "/").split("/") if part]
    try:
        return "/".join(validate_name(part) for part in parts)
    except ConfigError:
        raise ConfigError(
            f"{str(path)[:80]!r} cannot be a folder below the LoRAs' one: use letters, digits and / between folders."
        ) from None


@dataclass(frozen=True)
class QueueFile:
    """What queue.json holds. `order` was given at Unix time `ordered`: a job that was queued later is not meant."""

    settings: QueueSettings = QueueSettings()
    order: tuple[str, ...] = ()
    ordered: float = 0.0

    @classmethod
    def read(cls, path: Path) -> QueueFile:
        """The defaults where the file is missing, broken or of another version."""
        data = read_json_or_none(path) or {}
        try:
            if data["version"] != VERSION:
                return cls()
            known = {field.name: data[field.name] for field in fields(QueueSettings) if field.name in data}
            settings = QueueSettings().changed(**known)
            return cls(settings, tuple(str(job_id) for job_id in data["order"]), float(data["ordered"]))
        except (KeyError, TypeError, ValueError, ErasureError):
            return cls()

    def write(self, path: Path) -> None:
        """Replaces the file. Raises JobOfOtherVersion for a newer one; one that cannot be read is put aside."""
        old = read_json_or_none(path)
        if old is not None and isinstance(old.get("version"), int) and old["version"] > VERSION:
            raise JobOfOtherVersion("The queue's settings were made by a newer version of this pack: update the pack.")
        if old is None and path.exists():
            os.replace(path, path.with_name(f"{path.name}.broken"))
        value = {"version": VERSION, **self.settings.to_dict(), "order": list(self.order), "ordered": self.ordered}
        write_json(path, value)

    def reordered(self, order: Sequence[str]) -> QueueFile:
        """With this order of the jobs that are queued now."""
        return replace(self, order=tuple(order), ordered=time.time())


def moved(order: Sequence[str], job_id: str, to: str | int) -> list[str]:
    """`order` with one of its ids elsewhere: "first", "up", "down", "last", or a position counted from 1.

    A position behind the end means the end: the queue may have become shorter meanwhile. Raises JobError.
    """
    index, last = order.index(job_id), len(order) - 1
    if isinstance(to, int) and not isinstance(to, bool) and to >= 1:
        target = to - 1
    elif to in PLACES:
        target = {"first": 0, "up": max(0, index - 1), "down": index + 1, "last": last}[to]
    else:
        raise JobError(f"{str(to)[:40]!r} is no place in the queue: use {', '.join(PLACES)} or a number from 1.")
    rest = [other for other in order if other != job_id]
    rest.insert(min(target, last), job_id)
    return rest


class JobQueue:
    """The queue of the jobs in a repository. Safe to use from several processes and threads."""

    def __init__(self, repository: JobRepository):
        self._repository, self._file = repository, repository.root / "queue.json"

    def settings(self) -> QueueSettings:
        """How the queue is worked off."""
        return QueueFile.read(self._file).settings

    def configure(self, **changes: Any) -> QueueSettings:
        """Changes settings (see QueueSettings; None changes nothing). Raises JobError, ConfigError."""
        with self._repository.locked():
            content = QueueFile.read(self._file)
            content = replace(content, settings=content.settings.changed(**changes))
            content.write(self._file)
            return content.settings

    def jobs(self, among: Sequence[Job] | None = None) -> list[Job]:
        """The queued ones of some jobs (default: of all) in the order in which they start.

        First those that were ordered by hand, then the others by the time at which they were queued; a job that was
        stopped and resumed is queued anew.
        """
        content = QueueFile.read(self._file)
        place = {job_id: number for number, job_id in enumerate(content.order)}

        def key(job: Job) -> tuple[float, float, float, str]:
            by_hand = job.id in place and job.state.since <= content.ordered
            return (place[job.id] if by_hand else len(place), job.state.since, job.created, job.id)

        everything = self._repository.list() if among is None else among
        return sorted((job for job in everything if job.state.state == "queued"), key=key)

    def move(self, job_id: str, to: str | int) -> list[str]:
        """Puts a queued job elsewhere in the queue ("first", "up", "down", "last", or a position from 1).

        Returns the ids of all queued jobs in their new order. Raises JobError.
        """
        with self._repository.locked():
            order = [job.id for job in self.jobs()]
            if job_id not in order:
                state = self._repository.get(job_id).state.state
                raise JobError(f"The job is {state}: only a queued job has a place in the queue.")
            order = moved(order, job_id, to)
            QueueFile.read(self._file).reordered(order).write(self._file)
            return order
