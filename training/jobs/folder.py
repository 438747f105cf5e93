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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import JobError

STATES = ("queued", "starting", "running", "paused", "completed", "failed", "cancelled", "interrupted")
ACTIVE = ("starting", "running")  # a worker is (or should be) alive
OPEN = ("queued", "starting", "running", "paused", "interrupted")  # may still write the LoRA
STOP_WISHES = ("pause", "cancel")
VERSION = 1  # of this folder layout

_RESERVE_BYTES = 64 * 1024


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` by JSON in one step: a reader (or a crash) sees the old file or the new one, never a part."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        for attempt in range(20):
            try:
                os.replace(scratch, path)
                return
            except PermissionError:  # Windows, while another process has the old file open to read it
                if attempt == 19:
                    raise
                time.sleep(0.05)
    finally:
        scratch.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where the file is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True)
class JobState:
    """Where a job stands. `since` and `beat` are Unix times in seconds; `pid` and `process_created` name the worker."""

    state: str
    since: float
    step: int = 0
    total: int = 0
    seconds_per_step: float | None = None
    losses: dict[str, float] = field(default_factory=dict)
    phase: str = ""
    message: str = ""  # what is going on, or why it ended, as one sentence
    pid: int | None = None
    process_created: float | None = None
    attempt: int = 1

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> JobState:
        """From JSON; fields of a newer version are ignored. Raises KeyError, TypeError for what is no state."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in known})


class JobFolder:
    """Reads and writes one job's folder. Cheap to make; holds no open file but the lock while that is held."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.job_file = self.path / "job.json"
        self.state_file = self.path / "state.json"
        self.events_file = self.path / "events.jsonl"
        self.stop_file = self.path / "stop"
        self.heartbeat_file = self.path / "heartbeat"
        self.log_file = self.path / "log.txt"
        self.result_file = self.path / "result.json"
        self.samples = self.path / "samples"
        self._last: int | None = None  # number of the last event, known only while the lock is held

    @staticmethod
    def create(path: Path, job: dict[str, Any]) -> JobFolder:
        """Writes a new folder with everything in it, under another name first: it appears complete or not at all."""
        scratch = path.with_name(f".new-{path.name}")
        folder = JobFolder(scratch)
        for name in ("checkpoints", "samples"):
            (scratch / name).mkdir(parents=True)
        write_json(folder.job_file, {"version": VERSION, **job})
        (scratch / "reserve").write_bytes(b"\0" * _RESERVE_BYTES)
        folder.write_state(JobState("queued", time.time(), total=int(job.get("total", 0))))
        os.replace(scratch, path)
        return JobFolder(path)

    def request(self) -> dict[str, Any]:
        """job.json. Raises JobError when it is broken or from a newer version."""
        job = read_json(self.job_file)
        if job is None or "request" not in job:
            raise JobError(f"The job {self.path.name} has no readable job.json: delete the job and queue it again.")
        if job.get("version") != VERSION:
            raise JobError(f"The job {self.path.name} was made by another version of this pack: update the pack.")
        return job

    def state(self) -> JobState:
        """state.json. Raises JobError when it is broken."""
        data = read_json(self.state_file)
        try:
            state = JobState.from_dict(data or {})
        except TypeError:
            state = None
        if state is None or state.state not in STATES:
            raise JobError(f"The job {self.path.name} has no readable state.json: delete the job and queue it again.")
        return state

    @contextmanager
    def locked(self, timeout: float = 5) -> Iterator[None]:
        """Makes this process the folder's writer. Raises JobError when another one is for longer than `timeout` s."""
        try:
            with FileLock(self.path / "lock", timeout=timeout):
                self._last = None  # another process may have written since
                yield
        except Timeout:
            raise JobError(f"The job {self.path.name} is being trained: wait until it has stopped.") from None

    def write_state(self, state: JobState) -> None:
        """Replaces state.json. Only while the lock is held. On a full disk the reserve is given back first."""
        try:
            write_json(self.state_file, asdict(state))
        except OSError:
            (self.path / "reserve").unlink(missing_ok=True)
            write_json(self.state_file, asdict(state))

    def change(self, new: str, message: str = "", **changes: Any) -> JobState:
        """Writes a new state and then tells it as an event. Only while the lock is held."""
        state = replace(self.state(), state=new, since=time.time(), message=message, **changes)
        self.write_state(state)
        self.append({"type": "state", "state": new, "message": message})
        return state

    def append(self, event: dict[str, Any]) -> dict[str, Any]:
        """Appends one event with the next number `n` and the time; returns it. Only while the lock is held."""
        if self._last is None:
            self._last = max((known["n"] for known in self.events()), default=0)
        event = {"n": self._last + 1, "time": time.time(), **event}
        append_line(self.events_file, event)
        self._last += 1
        return event

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
        scratch = self.path / ".stop.tmp"
        scratch.write_text(wish, encoding="utf-8")
        os.replace(scratch, self.stop_file)


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
