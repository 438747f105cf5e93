"""The jobs of one user folder: create, read, list, stop, resume, clone, delete.

A change is on disk before anybody is notified of it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import ErasureError, JobError, JobNotFound, JobUnreadable
from ..files import read_json_or_none, sha256_of
from .folder import ACTIVE, Fill, JobFolder, require_free
from .job import Job
from .kinds import Request, digest_of
from .lifecycle import queue_again, stop
from .registry import kind_of

_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[a-z0-9-]{1,60}")


class JobRepository:
    """The jobs below `root`, a folder made when first needed. Safe to use from several processes and threads."""

    def __init__(self, root: Path):
        self.root = Path(root)
        self._cache: dict[str, tuple[tuple[int, int], Job]] = {}

    # Reading

    def get(self, job_id: str) -> Job:
        """Raises JobNotFound for an unknown or malformed id, JobUnreadable or JobOfOtherVersion for its folder."""
        known = isinstance(job_id, str) and _ID.fullmatch(job_id) and (self.root / job_id).is_dir()
        if not known or (self.root / job_id).is_symlink():  # a link may lead anywhere
            raise JobNotFound(f"There is no job {str(job_id)[:80]!r}: it may have been deleted.")
        return self._read(self.root / job_id)

    def list(self) -> Sequence[Job]:
        """All jobs that can be read, oldest first; problems() says what is wrong with the others."""
        return self.scan()[0]

    def problems(self) -> dict[str, str]:
        """What is wrong with the jobs that list() leaves out, one sentence each, by id."""
        return self.scan()[1]

    def scan(self) -> tuple[Sequence[Job], dict[str, str]]:
        """(list(), problems()) in one go."""
        jobs: list[Job] = []
        problems: dict[str, str] = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root) as entries:
            for entry in entries:
                if _ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    try:
                        jobs.append(self._read(self.root / entry.name))
                    except JobError as error:
                        problems[entry.name] = str(error)
        return sorted(jobs, key=lambda job: (job.created, job.id)), problems

    def _read(self, path: Path) -> Job:
        try:
            status = os.stat(f"{path}{os.sep}state.json")
        except OSError:
            JobFolder(path).request()  # one of another version may have no such file
            raise JobUnreadable(f"The job {path.name} has no state.json: delete the job and queue it again.") from None
        stamp = (status.st_mtime_ns, status.st_ino)
        known = self._cache.get(path.name)
        if known is None or known[0] != stamp:
            known = self._cache[path.name] = (stamp, Job.read(JobFolder(path)))
        job = known[1]
        return replace(job, stopping=job.folder.wish()) if job.state.state in ACTIVE else job

    def find(self, request: Request) -> Job | None:
        """The job that was made from the same request, or None."""
        digest = digest_of(request)
        return next((job for job in self.list() if job.digest == digest), None)

    # Changing

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes this process (and thread) the only one that adds jobs or changes the queue. Raises JobError."""
        lock = FileLock(self.root / ".lock", timeout=30)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise JobError("Another program is changing the jobs: try again in a moment.") from None
        except OSError as error:
            raise JobError(f"The folder of the jobs cannot be written ({error.strerror}): check it.") from error
        try:
            yield
        finally:
            lock.release()

    def submit(self, request: Request, choose_name: bool = False) -> Job:
        """Queues a request; the same request twice gives the existing job, which goes on if it had ended unfinished.

        choose_name: the name is only a beginning, a number is appended where it is taken by something else.
        Raises ErasureError's subclasses: a request that is not valid, a LoRA name that is taken, a folder that cannot
        be written, a disk that is nearly full. Nothing is written then.
        """
        request.validate()
        with self.locked():
            if choose_name:
                request = kind_of(request.to_dict()).with_free_name(request, self.list())
            return self._add(request)

    def clone(self, job_id: str, settings: dict[str, Any] | None = None, name: str = "") -> Job:
        """Queues a job's request again as a new job, with other settings or, where they change nothing, another seed.

        An empty `name` is chosen. Raises ErasureError's subclasses.
        """
        data = self.get(job_id).request
        kind = kind_of(data)
        request = kind.read(data)
        with self.locked():
            return self._add(kind.again(request, settings or {}, name.strip(), self.list()), parent=job_id)

    def _add(self, request: Request, parent: str | None = None, fill: Fill | None = None) -> Job:
        job = self.find(request)
        if job is not None:
            if job.state.state == "completed" and not job.product.exists():
                queue_again(job.folder, fresh=True)
                return self.get(job.id)
            return self.resume(job.id) if job.state.state in ("failed", "cancelled", "interrupted") else job
        data = request.to_dict()
        kind = kind_of(data)
        kind.claim(request, self.list())
        require_free("jobs", self.root)
        digest, now = digest_of(request), time.time()
        job_id = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{_slug(request.name)}-{digest[:8]}"
        record = {"request": data, "digest": digest, "created": now, "total": kind.steps(request)}
        if parent is not None:
            record["parent"] = parent
        try:
            JobFolder.create(self.root / job_id, record, fill)
        except (OSError, ErasureError) as error:
            shutil.rmtree(self.root / f".new-{job_id}", ignore_errors=True)
            if isinstance(error, ErasureError):
                raise
            raise JobError(f"The job cannot be written to disk ({error.strerror}): make room there.") from error
        return self.get(job_id)

    def pause(self, job_id: str) -> Job:
        """Stops a job so that resume() goes on from there. A running one stops within one step and frees its memory."""
        job = self.get(job_id)
        if job.state.state not in ("queued", *ACTIVE):
            raise JobError(f"The job is {job.state.state}: only a queued or running job can be paused.")
        stop(job.folder, "pause", ("queued",), "paused", "Paused before it started.")
        return self.get(job_id)

    def cancel(self, job_id: str) -> Job:
        """Stops a job for good; its folder and last checkpoint stay, so resume() could still go on."""
        job, idle = self.get(job_id), ("queued", "paused", "interrupted", "failed")
        if job.state.state not in (*idle, *ACTIVE):
            raise JobError(f"The job is {job.state.state} already.")
        stop(job.folder, "cancel", idle, "cancelled", "Cancelled.")
        return self.get(job_id)

    def resume(self, job_id: str) -> Job:
        """Queues a job again that was paused, cancelled, interrupted or failed; it goes on from its last checkpoint."""
        job = self.get(job_id)
        if job.state.state not in ("paused", "cancelled", "interrupted", "failed"):
            if job.stopping:
                raise JobError("The job is still stopping: resume it in a moment.")
            raise JobError(f"The job is {job.state.state}: there is nothing to resume.")
        kind_of(job.request).reclaim(job, self.list())
        queue_again(job.folder)
        return self.get(job_id)

    def retry(self, job_id: str, cheaper: bool = False) -> Job:
        """Like resume(); with `cheaper` as a new job with the next cheaper memory setting (see JobKind.cheaper).

        The old job stays as it is. Raises JobError, also where no cheaper setting is left.
        """
        if not cheaper:
            return self.resume(job_id)
        job = self.get(job_id)
        if job.state.state not in ("failed", "interrupted", "cancelled"):
            raise JobError(f"The job is {job.state.state}: only one that has failed can be retried.")
        kind = kind_of(job.request)
        found = kind.cheaper(kind.read(job.request), job.folder.path, job.state.phase)
        if found is None:
            raise JobError("No cheaper setting is left: close other programs and resume, or use a smaller model.")
        found.request.validate()
        if job.state.state == "interrupted":  # it could still be resumed, and then both would write one LoRA
            self.cancel(job_id)
        with self.locked():
            return self._add(found.request, job_id, found.fill)

    def delete(self, job_id: str, lora: bool = False) -> dict[str, Any]:
        """Removes a job's folder; a LoRA that it has made only where `lora` says so.

        Returns {"deleted": id, "lora": the LoRA's file name or None where there was none, "lora_deleted": bool}. Raises
        JobError while it is being trained, for a job of another version, and for a LoRA that is not the one the job has
        written; nothing is deleted then.
        """
        product = None
        folder = JobFolder(self.root / job_id)
        with contextlib.suppress(JobUnreadable):  # then only the folder goes
            job = self.get(job_id)
            if job.state.state in ACTIVE:
                raise JobError("The job is being trained: cancel it before deleting it.")
            if kind_of(job.request).makes_lora and job.state.state == "completed" and job.product.is_file():
                product = job.product
        with folder.locked():
            pass  # no worker is alive
        if product is not None and lora:
            if (read_json_or_none(folder.result_file) or {}).get("sha256") != sha256_of(product):
                raise JobError(
                    f"The LoRA {product.name} has been replaced since this job wrote it: delete the job without "
                    "its LoRA, and the file yourself if you want to."
                )
            product.unlink()
        grave = self.root / f".deleted-{job_id}-{time.time_ns()}"
        os.replace(folder.path, grave)
        self._cache.pop(job_id, None)
        shutil.rmtree(grave, ignore_errors=True)
        return {"deleted": job_id, "lora": product and product.name, "lora_deleted": product is not None and lora}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "job"
