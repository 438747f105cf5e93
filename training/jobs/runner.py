"""Does the job of one folder and writes down what happens: the worker's side of a job."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ErasureError, JobError
from ..files import sha256_of, write_json
from .folder import JobFolder, JobState
from .kinds import Report, Request
from .processes import own_identity
from .registry import kind_of, run

BEAT_SECONDS = 1
STATE_SECONDS = 1  # how often a step is written to state.json; every step is in events.jsonl
ALREADY_TRAINED = 3  # exit status when another worker has the job

Run = Callable[[Request, Path, Report, Callable[[], bool]], dict[str, Any]]  # see JobKind.run


class Reporter:
    """Writes what the training reports: each event to events.jsonl, the latest step to state.json.

    A step is written to state.json at once unless the last was written within STATE_SECONDS; flush(), called now and
    then from another thread, makes up for it, so that a reader never sees a step that is long past.
    """

    def __init__(self, folder: JobFolder):
        self.folder, self.state, self._written = folder, folder.state(), 0.0
        self._late, self._lock = False, threading.Lock()

    def __call__(self, event: dict[str, Any]) -> None:
        """Takes one event (see trainer.run)."""
        if "lora" in event:
            event = {**event, "lora": Path(event["lora"]).name}  # clients see no path of this machine
        if event["type"] == "step":
            changes = {name: event[name] for name in ("step", "total", "losses", "seconds_per_step") if name in event}
            self.state = replace(self.state, **changes, phase="train", message="")
        elif event["type"] == "phase":
            self.state = replace(self.state, phase=event["phase"], message=event.get("message", ""))
        if event["type"] != "step" or time.monotonic() - self._written > STATE_SECONDS:
            self.write()
        else:
            self._late = True
        self.folder.append(event)

    def write(self) -> None:
        """Puts the latest step into state.json."""
        with self._lock:
            self._late = False
            self.folder.write_state(self.state)
            self._written = time.monotonic()

    def flush(self) -> None:
        """The same if there is a step that state.json lacks."""
        if self._late:
            self.write()


def run_job(path: Path, work: Run, stopped: type[Exception]) -> int:
    """Does the job in folder `path` by `work`, which raises `stopped` when it was asked to stop; the exit status.

    Whatever happens, state.json says it afterwards in one sentence.
    """
    folder = JobFolder(path)
    try:
        with folder.locked(timeout=30):
            return _run_locked(folder, work, stopped)
    except JobError as error:
        print(error, file=sys.stderr)
        return ALREADY_TRAINED


def _run_locked(folder: JobFolder, work: Run, stopped: type[Exception]) -> int:
    if folder.state().state not in ("starting", "queued"):
        return ALREADY_TRAINED
    folder.change("running", "Reading the model.", phase="", **own_identity())
    report, problem, over = Reporter(folder), "", threading.Event()
    heart = threading.Thread(target=_beat, args=(folder.heartbeat_file, report, over), daemon=True)
    heart.start()
    try:
        data = folder.request()["request"]
        kind = kind_of(data)
        result = work(kind.read(data), folder.path, report, lambda: folder.wish() is not None)
        # Tells later whether the file is still the one that was written here.
        write_json(folder.result_file, {**result, "sha256": sha256_of(kind.product(data, folder.path))})
        new, message, status = "completed", "", 0
    except stopped:
        wish = folder.wish() or "pause"
        new = {"pause": "paused", "cancel": "cancelled"}[wish]
        message, status = f"{new.capitalize()} at step {report.state.step}.", 0
    except Exception as error:
        traceback.print_exc()
        for known in chain_of(error):  # what the training held is let go of, so that there is room to write this down
            traceback.clear_frames(known.__traceback__)
        new, message, status = "failed", sentence_of(error, report.state), 1
        if is_out_of_memory(error):
            problem, message = "memory", out_of_memory(folder, report.state)
    over.set()
    heart.join()
    report.write()
    folder.change(new, message, problem=problem)
    return status


def chain_of(error: BaseException) -> list[BaseException]:
    """An error and those that it was raised from."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


# What PyTorch's allocators and kernels say, each in its own words.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can(?:'t|not) allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED|bad_alloc", re.IGNORECASE
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was missing, on the device or in the computer, even if another error reports it."""
    return any(
        isinstance(known, MemoryError)
        or (isinstance(known, OSError) and known.errno == errno.ENOMEM)
        or (isinstance(known, RuntimeError) and _OUT_OF_MEMORY.search(str(known)) is not None)
        for known in chain_of(error)
    )


def out_of_memory(folder: JobFolder, state: JobState) -> str:
    """One sentence: where memory was missing, which checkpoint is there, and what would help."""
    saved = [event["step"] for event in folder.events() if event["type"] == "checkpoint"]
    checkpoint = f" (the checkpoint of step {saved[-1]} is kept)" if saved else ""
    try:
        data = folder.request()["request"]
        kind = kind_of(data)
        found = kind.cheaper(kind.read(data), folder.path, state.phase)
    except (ErasureError, MemoryError):
        found = None
    change = f"retry with {found.change}, or " if found else ""
    return f"Out of memory at step {state.step}{checkpoint}: {change}close other programs and resume."


def sentence_of(error: Exception, state: JobState) -> str:
    """Why a training failed, as one sentence that says what to do."""
    if isinstance(error, ErasureError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"No disk space is left at step {state.step}: free some and resume, nothing before it is lost."
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        name = Path(str(error.filename or "a file")).name
        return f"{name} cannot be written ({error.strerror}): change its permissions and resume."
    return f"The job failed at step {state.step} ({type(error).__name__}: {error}): its log.txt says where."


def _beat(path: Path, report: Reporter, over: threading.Event) -> None:
    while not over.is_set():
        with contextlib.suppress(OSError):  # a full disk; the next beat may succeed
            path.touch()
            report.flush()
        over.wait(BEAT_SECONDS)


def _step_aside() -> None:
    """Lets the host's own prompts go first where both use the CPU."""
    if os.name == "nt":
        import psutil

        psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
    else:
        os.nice(5)


def main(arguments: Sequence[str]) -> int:
    """Does the job whose folder is the only argument; the process's exit status."""
    # Reading the libraries makes millions of objects that all stay: looking for garbage among them, again and again,
    # takes a fifth of the time until a job starts.
    gc.disable()
    from ..trainer import Stopped

    gc.freeze()
    gc.enable()
    if len(arguments) != 1:
        print("usage: worker.py JOB_FOLDER", file=sys.stderr)
        return 2
    _step_aside()
    return run_job(Path(arguments[0]).resolve(), run, Stopped)
