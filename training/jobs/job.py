"""A job in the state in which its folder was read, and its description for clients."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ErasureError, JobUnreadable
from .folder import JobFolder, JobState
from .registry import kind_of


@dataclass(frozen=True)
class Job:
    """A job as it stood when it was read."""

    id: str
    folder: JobFolder
    request: dict[str, Any]
    digest: str
    created: float
    state: JobState
    parent: str | None = None  # id of the job that this one was made again from
    stopping: str | None = None  # "pause" or "cancel" while the worker has not stopped yet

    @classmethod
    def read(cls, folder: JobFolder) -> Job:
        """The job in a folder. Raises JobUnreadable, JobOfOtherVersion."""
        record = folder.request()
        try:
            job = cls(
                folder.path.name,
                folder,
                record["request"],
                record["digest"],
                float(record["created"]),
                folder.state(),
                record.get("parent"),
            )
            texts = (job.name, job.model, job.request["output_folder"], job.request["concept"]["phrase"], job.digest)
            if not all(isinstance(text, str) for text in (job.kind, *texts)):
                raise TypeError
        except (AttributeError, KeyError, TypeError, ValueError):
            raise JobUnreadable(
                f"The job {folder.path.name} is incomplete: delete the job and queue it again."
            ) from None
        return job

    @property
    def name(self) -> str:
        """What people call it; a training's is its LoRA's file stem."""
        return self.request["name"]

    @property
    def model(self) -> str:
        """The base model as a user knows it: the name of its folder, or the stem of its transformer's file."""
        source = self.request["source"]
        return Path(source["folder"]).name if source.get("folder") else Path(source.get("transformer", "")).stem

    @property
    def kind(self) -> str:
        """The name of its kind: "training" or "evaluation"."""
        return kind_of(self.request).name

    @property
    def product(self) -> Path:
        """The file that it makes, or will make: a LoRA, or an evaluation.json in its own folder."""
        return kind_of(self.request).product(self.request, self.folder.path)

    @property
    def lora(self) -> Path:
        """A training's product."""
        return self.product

    def samples(self) -> list[dict[str, Any]]:
        """The sample events whose pictures exist, in order; the last one of each picture."""
        found = {event["file"]: event for event in self.folder.events() if event.get("type") == "sample"}
        return [event for file, event in found.items() if (self.folder.samples / Path(file).name).is_file()]

    def to_dict(self, samples: bool = True) -> dict[str, Any]:
        """The description for the web page and other clients, without paths of this machine.

        Args:
            samples: Add what must be read from other files: the samples, and what a cheaper retry would change.
        """
        state = {**vars(self.state), "losses": dict(self.state.losses)}
        for private in ("pid", "process_created", "events"):
            del state[private]
        failed, completed = self.state.state in ("failed", "interrupted"), self.state.state == "completed"
        lora = f"{self.name}.safetensors" if completed and kind_of(self.request).makes_lora else None
        description = {
            "id": self.id,
            "kind": self.kind,
            "name": self.name,
            "concept": self.request["concept"]["phrase"],
            "model": self.model,
            "created": self.created,
            "stopping": self.stopping,
            **state,
            "error": self.state.message if failed else None,
            "lora": lora,
            # not through Path: a list of a thousand jobs would take twice as long
            "lora_exists": lora is not None and os.path.isfile(os.path.join(self.request["output_folder"], lora)),
            "parent": self.parent,
        }
        if samples:
            description["samples"] = self.samples()
            description["cheaper"] = self.cheaper()
        return description

    def cheaper(self) -> str | None:
        """What retrying with the next cheaper memory setting would change; None where it did not fail for that."""
        if self.state.problem != "memory":
            return None
        kind = kind_of(self.request)
        try:
            found = kind.cheaper(kind.read(self.request), self.folder.path, self.state.phase)
        except ErasureError:  # the model is gone
            return None
        return found.change if found else None
