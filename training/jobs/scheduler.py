"""Starts queued jobs while there is a free slot, adopts workers of an earlier server, notices workers that vanished.

One scheduler at a time works on a repository: a file lock keeps a second server that shares the user folder from
starting a job twice. The others only relay events.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from ..errors import JobError
from .admission import Admission
from .folder import ACTIVE, ENDED, parse_events
from .job import Job
from .job_queue import JobQueue
from .processes import end_tree, start_detached, worker_command, worker_of
from .repository import JobRepository

START_SECONDS = 60  # from the start of a process until it has written its pid
POLL_SECONDS = 0.3
LOOK_AHEAD = 10  # queued jobs that may wait for memory before nobody behind them is looked at

Listener = Callable[[str, dict[str, Any]], None]


class Scheduler:
    """Works in a thread of its own between start() and close(); workers go on without it.

    slots: how many jobs train at once; None: as the queue's settings say, which may change at any time. command: how a
    job folder becomes a process. make_room: asks the host to free memory for a job (see Admission).
    listener: called with (job id, event) for each event written since the scheduler began, in order, from the
    scheduler's thread; with ("", {"type": "list"}) when jobs came, went or changed their order. patience: seconds until
    a worker that was asked to stop and did not is terminated.
    """

    def __init__(
        self,
        repository: JobRepository,
        slots: int | None = None,
        command: Callable[[Path], list[str]] = worker_command,
        make_room: Callable[[Job], None] | None = None,
        listener: Listener | None = None,
        patience: float = 60,
    ):
        self.repository, self.queue = repository, JobQueue(repository)
        self.slots, self.patience = slots, patience
        self._command, self._admission, self._listener = command, Admission(make_room), listener
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._positions: dict[str, int] | None = None  # bytes of events.jsonl that were relayed, by job
        self._listed: tuple[set[str], list[str]] | None = None  # ids of all jobs, and of the queue in its order
        self._silent: dict[str, float] = {}  # ended jobs whose events were all relayed, with the time of their end
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock: FileLock | None = None

    def start(self) -> None:
        """Starts the thread; calling it again changes nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="erase-anything-scheduler", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends the thread and gives the repository free for another scheduler. Workers go on."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10)
        if self._lock is not None:
            self._lock.release()

    def _run(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                self.tick()
            except Exception:
                # One broken job folder or a full disk must not end the scheduling of the others.
                logging.exception("Erase Anything: the scheduler will try again")

    def tick(self) -> None:
        """One round: write down what ended, start what fits, relay what was written."""
        jobs = self.repository.list()
        if jobs and self._owns_repository():
            busy = {job.id for job in jobs if job.state.state in ACTIVE and self._is_alive(job)}
            # A worker that has said its last word still holds memory until its process is gone.
            busy |= {job_id for job_id, child in self._children.items() if child.poll() is None}
            self._fill_slots(jobs, busy)
        self._relay(jobs)
        self._tell_of_list(jobs)

    def _fill_slots(self, jobs: Sequence[Job], busy: set[str]) -> None:
        """Starts queued jobs; one that must wait for memory lets those behind it pass."""
        settings = self.queue.settings()
        free = (settings.slots if self.slots is None else self.slots) - len(busy)
        active = [job for job in jobs if job.id in busy]
        waiting = 0
        for job in self.queue.jobs(jobs) if free > 0 else ():
            why = self._admission.why_wait(job, active, settings.wait_for_memory)
            if why:
                self._let_wait(job, why)
                waiting += 1
            elif self._start(job):
                active.append(replace(job, state=replace(job.state, phase="")))
                free -= 1
            if free == 0 or waiting == LOOK_AHEAD:
                return

    def _let_wait(self, job: Job, why: str) -> None:
        """Writes down why a queued job does not start yet; its place in the queue stays."""
        with contextlib.suppress(JobError), job.folder.locked(timeout=0.5):
            state = job.folder.state()
            if state.state == "queued" and state.message != why:
                job.folder.write_state(replace(state, message=why))
                job.folder.append({"type": "state", "state": "queued", "message": why})

    def _owns_repository(self) -> bool:
        if self._lock is None:
            lock = FileLock(self.repository.root / ".scheduler", timeout=0, thread_local=False)
            try:
                lock.acquire()
            except Timeout:
                return False
            self._lock = lock
        return True

    def _is_alive(self, job: Job) -> bool:
        """Whether the job's worker lives; otherwise its end is written down. A worker that will not stop is ended."""
        child = self._children.get(job.id)
        ended = child is not None and child.poll() is not None
        worker = None if ended else worker_of(job.state)
        if child is not None and not ended and worker is None:
            with contextlib.suppress(psutil.Error):
                worker = psutil.Process(child.pid)  # it has not written its pid yet
        if worker is None:
            young = job.state.state == "starting" and time.time() - job.state.since < START_SECONDS
            if not ended and child is None and young:
                return True  # another server has just started it
            self._children.pop(job.id, None)
            self._write_end(job)
            return False
        if job.stopping and time.time() - _modified(job.folder.stop_file) > self.patience:
            end_tree(worker)
        return True

    def _write_end(self, job: Job) -> None:
        """Writes down what became of a job whose worker is gone without having said so."""
        with contextlib.suppress(JobError), job.folder.locked(timeout=0.5):
            state = job.folder.state()
            if state.state not in ACTIVE:
                return  # it had said so, after we looked
            wish = job.folder.wish()
            if wish == "pause":
                job.folder.change("paused", f"Paused at step {state.step}; its worker had to be ended.")
            elif wish == "cancel":
                job.folder.change("cancelled", f"Cancelled at step {state.step}; its worker had to be ended.")
            else:
                job.folder.change(
                    "interrupted",
                    f"The worker ended unexpectedly at step {state.step}: resume the job to go on from its last "
                    "checkpoint, or read its log.txt.",
                )

    def _start(self, job: Job) -> bool:
        """Starts a worker; whether there is one now."""
        with contextlib.suppress(JobError), job.folder.locked(timeout=0.5):
            if job.folder.state().state != "queued":
                return False  # cancelled or paused after we looked
            job.folder.stop_file.unlink(missing_ok=True)
            nobody = {"pid": None, "process_created": None, "phase": ""}
            job.folder.change("starting", "Starting the worker.", **nobody)
            self._admission.started(job.id)
            try:
                # The worker waits for the lock that we still hold.
                self._children[job.id] = start_detached(self._command(job.folder.path), job.folder.log_file)
                return True
            except OSError as error:
                job.folder.change("failed", f"The worker could not be started ({error.strerror}): resume it.")
        return False

    def _relay(self, jobs: Sequence[Job]) -> None:
        first = self._positions is None
        positions = self._positions or {}
        self._positions = {job.id: positions[job.id] for job in jobs if job.id in positions}
        for job in jobs:
            if self._silent.get(job.id) == job.state.since:
                continue
            known = self._positions.get(job.id)
            start, end = self._read_on(job, None if known is None and first else known or 0)
            self._positions[job.id] = end
            # Its last event comes right after its last state; nothing more until it is queued again.
            if start == end and job.state.state in ENDED and time.time() - job.state.since > 10:
                self._silent[job.id] = job.state.since

    def _tell_of_list(self, jobs: Sequence[Job]) -> None:
        """Tells that jobs came, went or changed their order in the queue: no job's own events say so."""
        listed = ({job.id for job in jobs}, [job.id for job in self.queue.jobs(jobs)])
        if self._listener is not None and self._listed not in (None, listed):
            self._listener("", {"type": "list"})
        self._listed = listed

    def _read_on(self, job: Job, start: int | None) -> tuple[int, int]:
        """Tells the events behind byte `start` (None: those still to come); the bytes (from, to) that were read."""
        path = job.folder.events_file
        try:
            size = path.stat().st_size
        except OSError:
            size = 0
        if start is None or size <= start:  # nothing new, or the log has lost its end
            return size, size
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(size - start)
        whole = data[: data.rfind(b"\n") + 1]
        if self._listener is not None:
            for event in parse_events(whole):
                self._listener(job.id, event)
        return start, start + len(whole)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()
