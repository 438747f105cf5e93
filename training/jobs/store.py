"""All jobs of one user folder: submit, list, order, pause, resume, cancel, clone, delete.

A change is on disk before it is told.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import memory
from ..errors import ErasureError, JobError
from ..memory import planned_request as settled
from ..request import ErasureRequest
from ..settings import ErasureConfig
from .folder import ACTIVE, OPEN, Fill, JobFolder, JobState, OtherVersion, read_json, sha256_of
from .order import QueueFile, QueueSettings, moved
from .work import EVALUATION, TRAINING, Request, kind_of, product_of, request_of

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
    parent: str | None = None  # id of the job that this one was cloned from
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
    def kind(self) -> str:
        """ "training" or "evaluation"."""
        return kind_of(self.request)

    @property
    def product(self) -> Path:
        """The file that it makes: the LoRA, or evaluation.json in its own folder."""
        return product_of(self.request, self.folder.path)

    @property
    def lora(self) -> Path:
        """Where a training's LoRA is, or will be."""
        return Path(self.request["output_folder"]) / f"{self.name}.safetensors"

    def samples(self) -> list[dict[str, Any]]:
        """The sample events whose pictures exist, in order; the last one of each picture."""
        found = {event["file"]: event for event in self.folder.events() if event.get("type") == "sample"}
        return [event for file, event in found.items() if (self.folder.samples / Path(file).name).is_file()]

    def to_dict(self, samples: bool = True) -> dict[str, Any]:
        """What the web page and other clients are told; no path of this machine is in it.

        samples: with what must be read from other files too, the samples and what a cheaper retry would change.
        """
        state = {**vars(self.state), "losses": dict(self.state.losses)}
        for private in ("pid", "process_created", "events"):
            del state[private]
        failed, completed = self.state.state in ("failed", "interrupted"), self.state.state == "completed"
        trained = completed and self.kind == TRAINING
        lora = f"{self.name}.safetensors"
        told = {
            "id": self.id,
            "kind": self.kind,
            "name": self.name,
            "concept": self.request["concept"]["phrase"],
            "model": self.model,
            "created": self.created,
            "stopping": self.stopping,
            **state,
            "error": self.state.message if failed else None,
            "lora": lora if trained else None,
            # not through Path: a list of a thousand jobs would take twice as long
            "lora_exists": trained and os.path.isfile(os.path.join(self.request["output_folder"], lora)),
            "parent": self.parent,
        }
        if samples:
            told["samples"] = self.samples()
            told["cheaper"] = self.cheaper()
        return told

    def cheaper(self) -> str | None:
        """What retrying with the next cheaper memory setting would change; None where it did not fail for that."""
        if self.state.problem != "memory" or self.kind != TRAINING:
            return None
        try:
            request = settled(ErasureRequest.from_dict(self.request), self.folder.path)
            found = memory.cheaper(request, self.state.phase)
        except ErasureError:  # the model is gone
            return None
        return found and found[1]


class JobStore:
    """The jobs below `root`, a folder made when first needed. Safe to use from several processes and threads."""

    def __init__(self, root: Path):
        self.root = Path(root)
        self._cache: dict[str, tuple[tuple[int, int], Job]] = {}

    # Reading

    def get(self, job_id: str) -> Job:
        """Raises JobError for an unknown or malformed id, and for a folder that cannot be read."""
        known = isinstance(job_id, str) and _ID.fullmatch(job_id) and (self.root / job_id).is_dir()
        if not known or (self.root / job_id).is_symlink():  # a link may lead anywhere
            raise JobError(f"There is no job {str(job_id)[:80]!r}: it may have been deleted.")
        return self._read(self.root / job_id)

    def list(self) -> list[Job]:
        """All jobs that can be read, oldest first; problems() says what is wrong with the others."""
        return self.scan()[0]

    def problems(self) -> dict[str, str]:
        """What is wrong with the jobs that list() leaves out, one sentence each, by id."""
        return self.scan()[1]

    def scan(self) -> tuple[list[Job], dict[str, str]]:
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
            raise JobError(f"The job {path.name} has no state.json: delete the job and queue it again.") from None
        stamp = (status.st_mtime_ns, status.st_ino)
        known = self._cache.get(path.name)
        if known is None or known[0] != stamp:
            known = self._cache[path.name] = (stamp, _job_in(JobFolder(path)))
        job = known[1]
        return replace(job, stopping=job.folder.wish()) if job.state.state in ACTIVE else job

    def find(self, request: Request) -> Job | None:
        """The job that was made from the same request, or None."""
        digest = digest_of(request)
        return next((job for job in self.list() if job.digest == digest), None)

    def name_is_taken(self, request: ErasureRequest) -> str | None:
        """Why no new job may write this request's LoRA, as one sentence; None where nothing is in the way."""
        target = Path(request.output_folder) / f"{request.name}.safetensors"
        for job in self.list():
            if job.kind == TRAINING and job.state.state in OPEN and same_file(job.lora, target):
                phrase = job.request["concept"]["phrase"]
                return (
                    f'Another job ("{phrase}", {job.state.state}) already writes the LoRA "{request.name}": '
                    "choose another name, or cancel that job first."
                )
        if target.exists():
            return f'A LoRA called "{request.name}" exists already: choose another name, or delete that file first.'
        return None

    # The queue

    @property
    def _queue_file(self) -> Path:
        return self.root / "queue.json"

    def settings(self) -> QueueSettings:
        """How the queue is worked off; kept on disk."""
        return QueueFile.read(self._queue_file).settings

    def configure(self, **changes: Any) -> QueueSettings:
        """Changes settings of the queue (see QueueSettings; None changes nothing). Raises JobError."""
        with self._locked():
            queue = QueueFile.read(self._queue_file)
            queue = replace(queue, settings=queue.settings.changed(**changes))
            queue.write(self._queue_file)
            return queue.settings

    def queue(self, jobs: Sequence[Job] | None = None) -> list[Job]:
        """The queued ones of `jobs` (default: of all) in the order in which they start.

        First those that were ordered by hand, then the others by the time at which they were queued; a job that was
        stopped and resumed is queued anew.
        """
        file = QueueFile.read(self._queue_file)
        place = {job_id: number for number, job_id in enumerate(file.order)}

        def key(job: Job) -> tuple[float, float, float, str]:
            ordered = job.id in place and job.state.since <= file.ordered
            return (place[job.id] if ordered else len(place), job.state.since, job.created, job.id)

        waiting = [job for job in (self.list() if jobs is None else jobs) if job.state.state == "queued"]
        return sorted(waiting, key=key)

    def move(self, job_id: str, to: str | int) -> list[str]:
        """Puts a queued job elsewhere in the queue ("first", "up", "down", "last", or a position from 1).

        Returns the ids of all queued jobs in their new order. Raises JobError.
        """
        with self._locked():
            order = [job.id for job in self.queue()]
            if job_id not in order:
                state = self.get(job_id).state.state
                raise JobError(f"The job is {state}: only a queued job has a place in the queue.")
            order = moved(order, job_id, to)
            QueueFile.read(self._queue_file).reordered(order).write(self._queue_file)
            return order

    # Changing

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
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

        choose_name: a training's name is only a beginning, a number is appended where it is taken by something else;
        evaluations write into their own folders, so that several may have one name.
        Raises ErasureError's subclasses: a request that is not valid, a LoRA name that is taken, a folder that cannot
        be written, a disk that is nearly full. Nothing is written then.
        """
        request.validate()
        with self._locked():
            if choose_name and isinstance(request, ErasureRequest):
                request = self._with_free_name(request)
            return self._submit(request)

    def clone(self, job_id: str, settings: dict[str, Any] | None = None, name: str = "") -> Job:
        """Queues the training of a job again as a new one, with other settings (those of ErasureConfig).

        Where they change nothing ("train again") it gets the next seed that no such training has. An empty `name` is
        chosen: the job's own with a number that is free. An evaluation is made again with the next seed; it has no
        settings of a training. Raises ErasureError's subclasses.
        """
        request = request_of(self.get(job_id).request)
        if not isinstance(request, ErasureRequest):
            if settings:
                raise JobError("An evaluation has no settings of a training: make it again without any.")
            with self._locked():
                return self._again(replace(request, name=name.strip() or request.name), job_id)
        config = ErasureConfig.from_dict({**request.config.to_dict(), **(settings or {})})
        with self._locked():
            if config == request.config:
                config = replace(config, seed=self._next_seed(request))
            chosen = replace(request, config=config, name=name.strip() or request.name)
            chosen.validate()
            if not name.strip():
                chosen = self._with_free_name(chosen, fresh=True)
            return self._submit(chosen, parent=job_id)

    def _again(self, request: Any, parent: str) -> Job:
        """An evaluation with the first seed after its own that no job has."""
        known = {job.digest for job in self.list()}
        again = request.next_seed()
        while digest_of(again) in known:
            again = again.next_seed()
        again.validate()
        return self._submit(again, parent)

    def _next_seed(self, request: ErasureRequest) -> int:
        """The seed after the highest one that a job has which differs from `request` in name and seed alone."""

        def training(data: dict[str, Any]) -> dict[str, Any]:
            return {**data, "name": None, "config": {**data["config"], "seed": None}}

        same = training(request.to_dict())
        trainings = [job.request for job in self.list() if job.kind == TRAINING]
        seeds = [data["config"]["seed"] for data in trainings if training(data) == same]
        return (max([request.config.seed, *seeds]) + 1) % 2**63

    def _with_free_name(self, request: ErasureRequest, fresh: bool = False) -> ErasureRequest:
        """The request under its own name or, where that is taken, the same name with a number.

        Taken are names of LoRAs that exist and of jobs that may still write theirs; with `fresh` those of all jobs. A
        name under which the same request was submitted before is the one.
        """
        jobs = self.list()
        digests = {job.digest for job in jobs}
        real = cache(os.path.realpath)  # asked for each of a thousand jobs, most have the same folder
        used = {
            (real(job.request["output_folder"]), job.name.casefold())
            for job in jobs
            if job.kind == TRAINING and (fresh or job.state.state in OPEN)
        }
        stem = re.sub(r"-\d{1,2}$", "", request.name) if fresh else request.name
        for number in itertools.count(1):
            named = replace(request, name=stem if number == 1 else f"{stem}-{number}")
            target = Path(named.output_folder) / f"{named.name}.safetensors"
            if digest_of(named) in digests or not (
                (real(named.output_folder), named.name.casefold()) in used or target.exists()
            ):
                return named
        raise AssertionError("unreachable")

    def _submit(self, request: Request, parent: str | None = None, fill: Fill | None = None) -> Job:
        job = self.find(request)
        if job is not None:
            if job.state.state == "completed" and not job.product.exists():
                return self._requeue(job, fresh=True)
            return self.resume(job.id) if job.state.state in ("failed", "cancelled", "interrupted") else job
        steps = 0  # of an evaluation nobody knows yet
        if isinstance(request, ErasureRequest):
            steps = request.config.steps
            taken = self.name_is_taken(request)
            if taken:
                raise JobError(taken)
            self._require_room(Path(request.output_folder))
        self._require_free("jobs", self.root)
        digest, now = digest_of(request), time.time()
        job_id = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{_slug(request.name)}-{digest[:8]}"
        record = {"request": request.to_dict(), "digest": digest, "created": now, "total": steps}
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

    def _require_room(self, output: Path) -> None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JobError(f"The LoRA folder {output.name} cannot be made ({error.strerror}).") from error
        if not os.access(output, os.W_OK):
            raise JobError(f"The LoRA folder {output.name} cannot be written: change its permissions.")
        self._require_free("LoRAs", output)

    @staticmethod
    def _require_free(what: str, folder: Path) -> None:
        free = shutil.disk_usage(folder).free
        if free < MIN_FREE_BYTES:
            raise JobError(
                f"The disk with the {what} has only {free // 1024**2} MB free: make at least "
                f"{MIN_FREE_BYTES // 1024**2} MB free and queue this again."
            )

    def pause(self, job_id: str) -> Job:
        """Stops a job so that resume() goes on from there. A running one stops within one step and frees its memory."""
        job = self.get(job_id)
        if job.state.state not in ("queued", *ACTIVE):
            raise JobError(f"The job is {job.state.state}: only a queued or running job can be paused.")
        return self._stop(job, "pause", ("queued",), "paused", "Paused before it started.")

    def cancel(self, job_id: str) -> Job:
        """Stops a job for good; its folder and last checkpoint stay, so resume() could still go on."""
        job, quiet = self.get(job_id), ("queued", "paused", "interrupted", "failed")
        if job.state.state not in (*quiet, *ACTIVE):
            raise JobError(f"The job is {job.state.state} already.")
        return self._stop(job, "cancel", quiet, "cancelled", "Cancelled.")

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

    def retry(self, job_id: str, cheaper: bool = False) -> Job:
        """Like resume(); with `cheaper` as a new job with the next cheaper memory setting (see memory.cheaper).

        Where only batches become smaller that one goes on from the last checkpoint, otherwise it starts anew. The old
        job stays as it is. Raises JobError, also where no cheaper setting is left.
        """
        if not cheaper:
            return self.resume(job_id)
        job = self.get(job_id)
        if job.state.state not in ("failed", "interrupted", "cancelled"):
            raise JobError(f"The job is {job.state.state}: only one that has failed can be retried.")
        request, found = request_of(job.request), None
        if isinstance(request, ErasureRequest):
            request = settled(request, job.folder.path)
            found = memory.cheaper(request, job.state.phase)
        if found is None:
            raise JobError("No cheaper setting is left: close other programs and resume, or use a smaller model.")
        new = found[0]
        new.validate()

        def keep_checkpoint(folder: Path) -> None:
            from ..checkpoint import carry_over

            carry_over(job.folder.path, folder, request, new)

        if job.state.state == "interrupted":  # it could still be resumed, and then both would write one LoRA
            self.cancel(job_id)
        with self._locked():
            return self._submit(new, job_id, keep_checkpoint)

    def name_is_taken_by_other(self, job: Job) -> str | None:
        """Like name_is_taken(), for a job that exists already: it may not overwrite what another job has written."""
        if job.kind == EVALUATION:
            return None
        for other in self.list():
            if other.id == job.id or other.kind == EVALUATION or not same_file(other.lora, job.lora):
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

    def _stop(self, job: Job, wish: str, quiet: tuple[str, ...], new: str, message: str) -> Job:
        """Asks a job's worker to stop; without one, in a state of `quiet`, the job is `new` at once."""
        if job.state.state in quiet:
            try:
                with job.folder.locked():
                    if job.folder.state().state in quiet:
                        job.folder.change(new, message)
            except JobError:  # somebody has the folder: its worker, if one was started since we looked
                if self.get(job.id).state.state not in ACTIVE:
                    raise
            job = self.get(job.id)
        if job.state.state in ACTIVE and (wish == "cancel" or job.stopping is None):
            job.folder.ask_to_stop(wish)
        return self.get(job.id)

    def delete(self, job_id: str, lora: bool = False) -> dict[str, Any]:
        """Removes a job's folder; its LoRA only where `lora` says so.

        Returns {"deleted": id, "lora": the LoRA's file name or None where there was none, "lora_deleted": bool}. Raises
        JobError while it is being trained, for a job of a newer version, and for a LoRA that is not the one the job has
        written; nothing is deleted then.
        """
        job, told = self._deletable(job_id), {"deleted": job_id, "lora": None, "lora_deleted": False}
        folder = JobFolder(self.root / job_id)
        if job is not None and job.state.state in ACTIVE:
            raise JobError("The job is being trained: cancel it before deleting it.")
        with folder.locked():
            pass  # no worker is alive
        if job is not None and job.kind == TRAINING and job.state.state == "completed" and job.lora.is_file():
            told["lora"] = job.lora.name
            if lora:
                if not _wrote(folder, job.lora):
                    raise JobError(
                        f"The LoRA {job.lora.name} has been replaced since this job wrote it: delete the job without "
                        "its LoRA, and the file yourself if you want to."
                    )
                job.lora.unlink()
                told["lora_deleted"] = True
        grave = self.root / f".deleted-{job_id}-{time.time_ns()}"
        os.replace(folder.path, grave)
        self._cache.pop(job_id, None)
        shutil.rmtree(grave, ignore_errors=True)
        return told

    def _deletable(self, job_id: str) -> Job | None:
        """The job, or None for a folder that is broken; raises JobError for one that another version must read."""
        try:
            return self.get(job_id)
        except OtherVersion:
            raise
        except JobError:
            if job_id not in self.problems():
                raise
            return None


def _job_in(folder: JobFolder) -> Job:
    """Reads a job. Raises JobError."""
    record = folder.request()
    try:
        job = Job(
            folder.path.name,
            folder,
            record["request"],
            record["digest"],
            float(record["created"]),
            folder.state(),
            record.get("parent"),
        )
        told = (job.name, job.model, job.request["output_folder"], job.request["concept"]["phrase"], job.digest)
        if not all(isinstance(text, str) for text in told):
            raise TypeError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise JobError(f"The job {folder.path.name} is incomplete: delete the job and queue it again.") from None
    return job


def _wrote(folder: JobFolder, lora: Path) -> bool:
    """Whether a LoRA file is the one that the job's worker has written."""
    return (read_json(folder.result_file) or {}).get("sha256") == sha256_of(lora)


def digest_of(request: Request) -> str:
    """SHA-256 over the request's JSON: equal exactly for equal requests."""
    return hashlib.sha256(json.dumps(request.to_dict(), sort_keys=True).encode()).hexdigest()


def same_file(first: Path, second: Path) -> bool:
    """Whether two paths name one file, also on file systems that ignore case."""
    return _key(first) == _key(second)


def _key(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path)).casefold()


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "job"
