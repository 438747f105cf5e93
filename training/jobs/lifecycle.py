"""What may become of a job that exists, written into its folder: stopped, or queued again."""

from __future__ import annotations

import shutil
from collections.abc import Collection

from ..errors import JobBusy
from .folder import ACTIVE, JobFolder


def queue_again(folder: JobFolder, fresh: bool = False) -> None:
    """Queues a job that no worker has; it goes on from its last checkpoint, with `fresh` from its start."""
    with folder.locked():
        if fresh:  # it had been completed: its checkpoints would end it at once, and what it made is gone
            shutil.rmtree(folder.path / "checkpoints", ignore_errors=True)
            (folder.path / "checkpoints").mkdir(exist_ok=True)
            folder.result_file.unlink(missing_ok=True)
        folder.stop_file.unlink(missing_ok=True)
        attempt = folder.state().attempt + 1
        folder.change("queued", pid=None, process_created=None, attempt=attempt)


def stop(folder: JobFolder, wish: str, idle: Collection[str], new: str, message: str) -> None:
    """Asks a job's worker to stop ("pause" or "cancel"); without one, in a state of `idle`, it is `new` at once."""
    if folder.state().state in idle:
        try:
            with folder.locked():
                if folder.state().state in idle:
                    folder.change(new, message)
        except JobBusy:  # its worker has the folder, if one was started since we looked
            if folder.state().state not in ACTIVE:
                raise
    if folder.state().state in ACTIVE and (wish == "cancel" or folder.wish() is None):
        folder.ask_to_stop(wish)
