"""One job's folder on disk: what each file in it holds, who may write it, and how it survives a crash.

    job.json       the request; written once, never changed
    state.json     state, step, process; replaced atomically
    events.jsonl   numbered events, appended
    stop           "pause" or "cancel": the server's wish, read by the worker at every step
    heartbeat      touched every few seconds by the worker
    lock           held by the worker as long as it lives, by the server only for a moment
    reserve        some kilobytes that are given back when the disk is full, so that this can still be written down
    log.txt, checkpoints/, samples/, result.json   the worker's

Whoever holds the lock is the only writer of state.json and events.jsonl. Any number of processes may read at any time.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import JobBusy, JobError, JobOfOtherVersion, JobUnreadable
from ..files import read_json, write_atomically, write_json

STATES = ("queued", "starting", "running", "paused", "completed", "failed", "cancelled", "interrupted")
ACTIVE = ("starting", "running")  # a worker is (or should be) alive
OPEN = ("queued", "starting", "running", "paused", "interrupted")  # may still write the LoRA
ENDED = ("paused", "completed", "failed", "cancelled", "interrupted")  # no worker, and none comes by itself
STOP_WISHES = ("pause", "cancel")
VERSION = 1  # of this folder layout

# A job needs little (checkpoints of a small LoRA, some pictures), but a disk that is nearly full fills up meanwhile.
MIN_FREE_BYTES = 200 * 1024**2

_RESERVE_BYTES = 64 * 1024
_LOST_EVENTS = 1000  # at most so many are written between two states

Fill = Callable[[Path], None]  # puts more files into a job folder before it appears


@dataclass(frozen=True)
class JobState:
    """Where a job stands. `since` is a Unix time in seconds; `pid` and `process_created` name the worker."""

    state: str
    since: float
    step: int = 0
    total: int = 0
    seconds_per_step: float | None = None
    losses: dict[str, float] = field(default_factory=dict)
    phase: str = ""
    message: str = ""  # what is going on, or why it ended or waits, as one sentence
    problem: str = ""  # "memory" where it failed for want of memory
    pid: int | None = None
    process_created: float | None = None
    attempt: int = 1
    events: int = 0  # number of the last event when this was written

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> JobState:
        """From JSON; fields of a newer version are ignored. Raises KeyError, TypeError for what is no state."""
        return cls(**{name: value for name, value in data.items() if name in cls.__dataclass_fields__})


class JobFolder:
    """Reads and writes one job's folder. Cheap to make; holds no open file but the lock while that is held."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._last: int | None = None  # number of the last event, known only while the lock is held

    # Made when first needed: a list of a thousand jobs asks for few of them.
    job_file = cached_property(lambda self: self.path / "job.json")
    state_file = cached_property(lambda self: self.path / "state.json")
    events_file = cached_property(lambda self: self.path / "events.jsonl")
    stop_file = cached_property(lambda self: self.path / "stop")
    heartbeat_file = cached_property(lambda self: self.path / "heartbeat")
    log_file = cached_property(lambda self: self.path / "log.txt")
    result_file = cached_property(lambda self: self.path / "result.json")
    samples = cached_property(lambda self: self.path / "samples")

    @staticmethod
    def create(path: Path, job: dict[str, Any], fill: Fill | None = None) -> JobFolder:
        """Writes a new folder with everything in it, under another name first: it appears complete or not at all.

        fill: puts more into it.
        """
        scratch = path.with_name(f".new-{path.name}")
        folder = JobFolder(scratch)
        for name in ("checkpoints", "samples"):
            (scratch / name).mkdir(parents=True)
        write_json(folder.job_file, {"version": VERSION, **job})
        if fill is not None:
            fill(scratch)
        (scratch / "reserve").write_bytes(b"\0" * _RESERVE_BYTES)
        folder.write_state(JobState("queued", time.time(), total=int(job.get("total", 0))))
        os.replace(scratch, path)
        return JobFolder(path)

    def request(self) -> dict[str, Any]:
        """job.json. Raises JobUnreadable, JobOfOtherVersion."""
        broken = self._unreadable("readable job.json")
        job = read_json(self.job_file, broken)
        if job.get("version", VERSION) != VERSION:
            raise JobOfOtherVersion(
                f"The job {self.path.name} was made by another version of this pack: update the pack."
            )
        if "request" not in job:
            raise broken
        return job

    def state(self) -> JobState:
        """state.json. Raises JobUnreadable."""
        broken = self._unreadable("readable state.json")
        try:
            state = JobState.from_dict(read_json(self.state_file, broken))
        except TypeError:
            raise broken from None
        if state.state not in STATES:
            raise broken
        return state

    def _unreadable(self, lacks: str) -> JobUnreadable:
        return JobUnreadable(f"The job {self.path.name} has no {lacks}: delete the job and queue it again.")

    @contextmanager
    def locked(self, timeout: float = 5) -> Iterator[None]:
        """Makes this process the folder's writer. Raises JobBusy when another one is for longer than `timeout` s."""
        try:
            with FileLock(self.path / "lock", timeout=timeout):
                self._last = None  # another process may have written since
                yield
        except Timeout:
            raise JobBusy(f"The job {self.path.name} is being trained: wait until it has stopped.") from None

    def write_state(self, state: JobState) -> None:
        """Replaces state.json. Only while the lock is held. On a full disk the reserve is given back first."""
        state = replace(state, events=max(state.events, self._last or 0))
        try:
            write_json(self.state_file, asdict(state))
        except OSError:
            (self.path / "reserve").unlink(missing_ok=True)
            write_json(self.state_file, asdict(state))

    def change(self, new: str, message: str = "", **changes: Any) -> JobState:
        """Writes a new state and then tells it as an event. Only while the lock is held."""
        changes = {"problem": "", **changes}
        state = replace(self.state(), state=new, since=time.time(), message=message, **changes)
        self.write_state(state)
        self.append({"type": "state", "state": new, "message": message})
        return state

    def append(self, event: dict[str, Any]) -> dict[str, Any]:
        """Appends one event with the next number `n` and the time; returns it. Only while the lock is held."""
        if self._last is None:
            self._last = self._last_number()
        event = {"n": self._last + 1, "time": time.time(), **event}
        append_line(self.events_file, event)
        self._last += 1
        return event

    def _last_number(self) -> int:
        """The number of the last event; far behind it where the log has lost its end, so that none is given twice."""
        last, known = max((event["n"] for event in self.events()), default=0), self.state().events
        if last >= known:
            return last
        lost = f"The event log has lost events {last + 1} to {known}: what was reported then can no longer be shown."
        note = {"n": known + _LOST_EVENTS, "time": time.time(), "type": "notice", "message": lost}
        append_line(self.events_file, note)
        return known + _LOST_EVENTS

    def events(self, since: int = 0) -> list[dict[str, Any]]:
        """Events with a number above `since`, in order. Lines cut short by a crash are left out."""
        try:
            data = self.events_file.read_bytes()
        except FileNotFoundError:
            return []
        return [event for event in parse_events(data) if event["n"] > since]

    def wish(self) -> str | None:
        """What the server wants the worker to do: "pause", "cancel" or nothing."""
        try:
            wish = self.stop_file.read_text(encoding="utf-8")
        except OSError:
            return None
        return wish if wish in STOP_WISHES else None

    def ask_to_stop(self, wish: str) -> None:
        """Leaves a wish for the worker, which it sees at its next step; a later "cancel" replaces "pause"."""
        write_atomically(self.stop_file, wish.encode())


def require_free(what: str, folder: Path) -> None:
    """Raises JobError where the disk of `folder`, which holds `what`, is nearly full."""
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise JobError(
            f"The disk with the {what} has only {free // 1024**2} MB free: make at least "
            f"{MIN_FREE_BYTES // 1024**2} MB free and queue this again."
        )


def append_line(path: Path, event: dict[str, Any]) -> None:
    """Appends one JSON line in a single write; a line that a crash cut short before it is closed first."""
    line = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)


def parse_events(data: bytes) -> Iterator[dict[str, Any]]:
    """Events from whole or partial lines; what is no event with a number is left out."""
    for line in data.split(b"\n"):
        try:
            event = json.loads(line) if line else None
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("n"), int):
            yield event
