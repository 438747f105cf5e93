"""All jobs of one user folder: submit, list, pause, resume, cancel, delete. A change is on disk before it is told."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..config import ErasureRequest
from ..errors import JobError
from .folder import ACTIVE, OPEN, JobFolder, JobState

_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[a-z0-9-]{1,60}")

# A job needs little (checkpoints of a small LoRA, some pictures), but a disk that is nearly full fills up meanwhile.
MIN_FREE_BYTES = 200 * 1024**2


@dataclass(frozen=True)
class Job:
    """A job as it stood when it was read."""

    id: str
    folder: JobFolder
    request: dict[str, Any]
    digest: str
    created: float
    state: JobState
    stopping: str | None = None  # "pause" or "cancel" while the worker has not stopped yet

    @property
    def name(self) -> str:
        """The LoRA's file stem."""
        return self.request["name"]

    @property
    def model(self) -> str:
        """The base model as a user knows it: the name of its folder, or the stem of its transformer's file."""
        source = self.request["source"]
        return Path(source["folder"]).name if source.get("folder") else Path(source.get("transformer", "")).stem

    @property
    def lora(self) -> Path:
        """Where the LoRA is, or will be."""
        return Path(self.request["output_folder"]) / f"{self.name}.safetensors"

    def samples(self) -> list[dict[str, Any]]:
        """The sample events whose pictures exist, in order; the last one of each picture."""
        found = {event["file"]: event for event in self.folder.events() if event.get("type") == "sample"}
        return [event for file, event in found.items() if (self.folder.samples / Path(file).name).is_file()]

    def to_dict(self, samples: bool = True) -> dict[str, Any]:
        """What the web page and other clients are told; no path of this machine is in it."""
        state = asdict(self.state)
        for private in ("pid", "process_created"):
            del state[private]
        failed = self.state.state in ("failed", "interrupted")
        told = {
            "id": self.id,
            "name": self.name,
            "concept": self.request["concept"]["phrase"],
            "model": self.model,
            "created": self.created,
            "stopping": self.stopping,
            **state,
            "error": self.state.message if failed else None,
            "lora": self.lora.name if self.state.state == "completed" else None,
        }
        if samples:
            told["samples"] = self.samples()
        return told


class JobStore:
    """The jobs below `root`, a folder made when first needed. Safe to use from several processes and threads."""

    def __init__(self, root: Path):
        self.root = Path(root)
        self._cache: dict[str, tuple[tuple[int, int], Job]] = {}

    # Reading

    def get(self, job_id: str) -> Job:
        """Raises JobError for an unknown or malformed id, and for a folder that cannot be read."""
        if not isinstance(job_id, str) or not _ID.fullmatch(job_id) or not (self.root / job_id).is_dir():
            raise JobError(f"There is no job {str(job_id)[:80]!r}: it may have been deleted.")
        return self._read(self.root / job_id)

    def list(self) -> list[Job]:
        """All jobs that can be read, oldest first (the order in which they are trained)."""
        if not self.root.is_dir():
            return []
        jobs = []
        for entry in sorted(entry.name for entry in os.scandir(self.root)):
            if _ID.fullmatch(entry):
                try:
                    jobs.append(self._read(self.root / entry))
                except JobError:
                    continue  # broken or of another version: left alone, never overwritten; get() says what is wrong
        return sorted(jobs, key=lambda job: (job.created, job.id))

    def _read(self, path: Path) -> Job:
        folder = JobFolder(path)
        try:
            status = folder.state_file.stat()
        except OSError:
            raise JobError(f"The job {path.name} has no state.json: delete the job and queue it again.") from None
        stamp = (status.st_mtime_ns, status.st_ino)
        known = self._cache.get(path.name)
        if known is None or known[0] != stamp:
            job = folder.request()
            try:
                read = Job(path.name, folder, job["request"], job["digest"], float(job["created"]), folder.state())
                told = (read.name, read.model, read.request["output_folder"], read.request["concept"]["phrase"])
                if not all(isinstance(text, str) for text in told):
                    raise TypeError
            except (AttributeError, KeyError, TypeError, ValueError):
                raise JobError(f"The job {path.name} is incomplete: delete the job and queue it again.") from None
            known = self._cache[path.name] = (stamp, read)
        job = known[1]
        return replace(job, stopping=folder.wish()) if job.state.state in ACTIVE else job

    def find(self, request: ErasureRequest) -> Job | None:
        """The job that was made from the same request, or None."""
        digest = digest_of(request)
        return next((job for job in self.list() if job.digest == digest), None)

    def name_is_taken(self, request: ErasureRequest) -> str | None:
        """Why no new job may write this request's LoRA, as one sentence; None where nothing is in the way."""
        target = Path(request.output_folder) / f"{request.name}.safetensors"
        for job in self.list():
            if job.state.state in OPEN and same_file(job.lora, target):
                phrase = job.request["concept"]["phrase"]
                return (
                    f'Another job ("{phrase}", {job.state.state}) already writes the LoRA "{request.name}": '
                    "choose another name, or cancel that job first."
                )
        if target.exists():
            return f'A LoRA called "{request.name}" exists already: choose another name, or delete that file first.'
        return None

    # Changing

    def submit(self, request: ErasureRequest) -> Job:
        """Queues a request; the same request twice gives the existing job, which goes on if it had ended unfinished.

        Raises ErasureError's subclasses: a request that is not valid, a LoRA name that is taken, a folder that cannot
        be written, a disk that is nearly full. Nothing is written then.
        """
        request.validate()
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / ".lock", timeout=30):
            job = self.find(request)
            if job is not None:
                if job.state.state == "completed" and not job.lora.exists():
                    return self._requeue(job, fresh=True)
                return self.resume(job.id) if job.state.state in ("failed", "cancelled", "interrupted") else job
            taken = self.name_is_taken(request)
            if taken:
                raise JobError(taken)
            self._require_room(Path(request.output_folder))
            digest, now = digest_of(request), time.time()
            job_id = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{_slug(request.name)}-{digest[:8]}"
            record = {"request": request.to_dict(), "digest": digest, "created": now, "total": request.config.steps}
            try:
                JobFolder.create(self.root / job_id, record)
            except OSError as error:
                shutil.rmtree(self.root / f".new-{job_id}", ignore_errors=True)
                raise JobError(f"The job cannot be written to disk ({error.strerror}): make room there.") from error
            return self.get(job_id)

    def _require_room(self, output: Path) -> None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JobError(f"The LoRA folder {output.name} cannot be made ({error.strerror}).") from error
        if not os.access(output, os.W_OK):
            raise JobError(f"The LoRA folder {output.name} cannot be written: change its permissions.")
        for what, folder in (("training jobs", self.root), ("LoRAs", output)):
            free = shutil.disk_usage(folder).free
            if free < MIN_FREE_BYTES:
                raise JobError(
                    f"The disk with the {what} has only {free // 1024**2} MB free: make at least "
                    f"{MIN_FREE_BYTES // 1024**2} MB free and queue this again."
                )

    def pause(self, job_id: str) -> Job:
        """Stops a job so that resume() goes on from there. A running one stops within one step and frees its memory."""
        job = self.get(job_id)
        if job.state.state == "queued":
            return self._settle(job, "queued", "paused", "Paused before it started.")
        if job.state.state in ACTIVE:
            if job.stopping is None:
                job.folder.ask_to_stop("pause")
            return self.get(job_id)
        raise JobError(f"The job is {job.state.state}: only a queued or running job can be paused.")

    def cancel(self, job_id: str) -> Job:
        """Stops a job for good; its folder and last checkpoint stay, so resume() could still go on."""
        job = self.get(job_id)
        if job.state.state in ACTIVE:
            job.folder.ask_to_stop("cancel")
            return self.get(job_id)
        if job.state.state in ("queued", "paused", "interrupted", "failed"):
            return self._settle(job, job.state.state, "cancelled", "Cancelled.")
        raise JobError(f"The job is {job.state.state} already.")

    def resume(self, job_id: str) -> Job:
        """Queues a job again that was paused, cancelled, interrupted or failed; it goes on from its last checkpoint."""
        job = self.get(job_id)
        if job.state.state not in ("paused", "cancelled", "interrupted", "failed"):
            if job.stopping:
                raise JobError("The job is still stopping: resume it in a moment.")
            raise JobError(f"The job is {job.state.state}: there is nothing to resume.")
        taken = self.name_is_taken_by_other(job)
        if taken:
            raise JobError(taken)
        return self._requeue(job)

    def name_is_taken_by_other(self, job: Job) -> str | None:
        """Like name_is_taken(), for a job that exists already: it may not overwrite what another job has written."""
        for other in self.list():
            if other.id == job.id or not same_file(other.lora, job.lora):
                continue
            if other.state.state in OPEN:
                return f'Another job already writes the LoRA "{job.name}": cancel that one first.'
            if other.state.state == "completed" and other.lora.exists():
                return f'Another job has written the LoRA "{job.name}" since: delete that file first.'
        return None

    def _requeue(self, job: Job, fresh: bool = False) -> Job:
        with job.folder.locked():
            if fresh:  # it had been completed: its checkpoints would end it at once, and the LoRA is gone
                shutil.rmtree(job.folder.path / "checkpoints", ignore_errors=True)
                (job.folder.path / "checkpoints").mkdir(exist_ok=True)
                job.folder.result_file.unlink(missing_ok=True)
            job.folder.stop_file.unlink(missing_ok=True)
            attempt = job.folder.state().attempt + 1
            job.folder.change("queued", pid=None, process_created=None, attempt=attempt)
        return self.get(job.id)

    def _settle(self, job: Job, expected: str, new: str, message: str) -> Job:
        """A change that needs no worker; `expected` guards against a scheduler that was faster."""
        with job.folder.locked():
            if job.folder.state().state == expected:
                job.folder.change(new, message)
        return self.get(job.id)

    def delete(self, job_id: str) -> None:
        """Removes a job's folder; its LoRA stays. Raises JobError while it is being trained."""
        job = self.get(job_id)
        if job.state.state in ACTIVE:
            raise JobError("The job is being trained: cancel it before deleting it.")
        with job.folder.locked():
            pass  # no worker is alive
        grave = self.root / f".deleted-{job_id}-{time.time_ns()}"
        os.replace(job.folder.path, grave)
        self._cache.pop(job_id, None)
        shutil.rmtree(grave, ignore_errors=True)


def digest_of(request: ErasureRequest) -> str:
    """SHA-256 over the request's JSON: equal exactly for equal requests."""
    return hashlib.sha256(json.dumps(request.to_dict(), sort_keys=True).encode()).hexdigest()


def same_file(first: Path, second: Path) -> bool:
    """Whether two paths name one file, also on file systems that ignore case."""
    return os.path.normcase(first.resolve()).casefold() == os.path.normcase(second.resolve()).casefold()


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "job"
