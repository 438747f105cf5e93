"""Worker processes: start one that outlives its parent, recognise it again, end it with its children."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from .folder import JobState

WORKER = Path(__file__).with_name("worker.py")


def worker_command(job: Path) -> list[str]:
    """The command that trains the job in folder `job`: by path, since portable Windows builds restrict `-m`."""
    return [sys.executable, "-s", str(WORKER), str(job)]


# The last two keep Intel's MKL from choosing threads and code paths by load and memory alignment: without them a
# resumed run may differ from an uninterrupted one in the last bits.
ENVIRONMENT = {"PYTHONUTF8": "1", "MKL_DYNAMIC": "FALSE", "MKL_CBWR": "AUTO,STRICT"}


def start_detached(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, so that it outlives this one; its output is appended to `log`."""
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env={**os.environ, **ENVIRONMENT},
            **options,
        )


def own_identity() -> dict[str, float | int]:
    """This process as JobState names it. The creation time tells it from a later process with the same pid."""
    return {"pid": os.getpid(), "process_created": psutil.Process().create_time()}


def worker_of(state: JobState) -> psutil.Process | None:
    """The living worker that a state names, whoever started it; None if it is gone or has only not been reaped yet."""
    if state.pid is None or state.process_created is None:
        return None
    try:
        process = psutil.Process(state.pid)
        # The system's clock may be adjusted by a little between the two readings.
        if abs(process.create_time() - state.process_created) > 2 or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.Error:
        return None
    return process


def end_tree(process: psutil.Process, patience: float = 5) -> None:
    """Terminates a process and its children, and kills what is left after `patience` seconds."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return
    for kill in (False, True):
        for member in family:
            try:
                member.kill() if kill else member.terminate()
            except psutil.Error:
                continue
        _, family = psutil.wait_procs(family, timeout=patience)
