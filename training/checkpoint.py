"""Checkpoints: all that a training needs in order to continue as if it had not stopped, one safetensors file each."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .bank import FILE, digest, read_tensors, write_tensors
from .errors import CheckpointError
from .lora.format import LoraWeights
from .request import ErasureRequest
from .settings import names_affecting


@dataclass
class Checkpoint:
    """The state of a training after `step` steps.

    Attributes:
        lora: The adapter's weights.
        optimizers: For each level, AdamW's state of each parameter.
        generator: The state of the training's random generator.
        facts: The base's fingerprint, the digests of request and bank, the seconds so far, the number of threads.
        bank: Those tensors of the bank that differ from the bank's file.
    """

    step: int
    lora: LoraWeights
    optimizers: dict[str, list[dict[str, Tensor]]]
    generator: Tensor
    facts: dict[str, Any]
    bank: dict[str, Tensor] = field(default_factory=dict)


def request_digest(request: ErasureRequest) -> str:
    """A hash of what decides the LoRA: the concept and the settings that affect it.

    Names, folders, and settings of saving and memory are left out: a training may be resumed with others.
    """
    return _digest(request, names_affecting("bank", "weights"))


def bank_request_digest(request: ErasureRequest) -> str:
    """A hash of what decides the bank: trainings on one base with the same hash can use the same bank file."""
    return _digest(request, names_affecting("bank"))


def _digest(request: ErasureRequest, settings: Collection[str]) -> str:
    config = {name: value for name, value in request.config.to_dict().items() if name in settings}
    text = json.dumps([request.concept.to_dict(), config], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def _steps(folder: Path) -> list[int]:
    found = (re.fullmatch(r"step-(\d+)\.safetensors", path.name) for path in folder.glob("step-*.safetensors"))
    return sorted(int(match[1]) for match in found if match)


def optimizer_state(optimizer: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
    """The state of each parameter, in the order of the optimiser's parameters; empty before the first update."""
    state = optimizer.state_dict()["state"]
    count = len(optimizer.state_dict()["param_groups"][0]["params"])
    return [{k: v.detach().cpu().clone() for k, v in state.get(i, {}).items()} for i in range(count)]


def load_optimizer_state(optimizer: torch.optim.Optimizer, states: list[dict[str, Tensor]]) -> None:
    """Restores what `optimizer_state` returned, on an optimiser over the same parameters."""
    whole = optimizer.state_dict()
    whole["state"] = {i: state for i, state in enumerate(states) if state}
    optimizer.load_state_dict(whole)


def write_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Writes a checkpoint atomically, then removes all but the newest `keep` in the folder.

    Returns:
        The file's path.

    Raises:
        CheckpointError: Where it cannot be written, or where a weight is not finite: the last good checkpoint stays.
    """
    tensors: dict[str, Tensor] = {"generator": checkpoint.generator}
    for module, (a, b, alpha) in checkpoint.lora.items():
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise CheckpointError(
                f"The LoRA of {module} is no longer finite after step {checkpoint.step}: lower the learning rates."
            )
        tensors |= {f"lora/{module}/A": a, f"lora/{module}/B": b, f"lora/{module}/alpha": torch.tensor(alpha)}
    for level, states in checkpoint.optimizers.items():
        for index, state in enumerate(states):
            tensors |= {f"optimizer/{level}/{index}/{name}": value for name, value in state.items()}
    tensors |= {f"bank/{name}": value for name, value in checkpoint.bank.items()}
    counts = {level: len(states) for level, states in checkpoint.optimizers.items()}
    facts = {**checkpoint.facts, "step": checkpoint.step, "optimizers": counts}
    path = _path(folder, checkpoint.step)
    metadata = {"facts": json.dumps(facts, sort_keys=True), "digest": digest(tensors)}
    write_tensors(path, tensors, metadata, "checkpoint")
    for step in _steps(folder)[:-keep]:
        _path(folder, step).unlink(missing_ok=True)
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint file.

    Raises:
        CheckpointError: Where it is no checkpoint, or where any bit of it has changed since it was written.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("digest") != digest(tensors):
        raise CheckpointError(f"{path.name} is damaged: delete it and start again.")
    try:
        facts = json.loads(metadata["facts"])
        modules = dict.fromkeys(key.split("/")[1] for key in tensors if key.startswith("lora/"))
        lora = {m: (tensors[f"lora/{m}/A"], tensors[f"lora/{m}/B"], float(tensors[f"lora/{m}/alpha"])) for m in modules}
        optimizers: dict[str, list[dict[str, Tensor]]] = {
            level: [{} for _ in range(count)] for level, count in facts["optimizers"].items()
        }
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, level, index, name = key.split("/")
                optimizers[level][int(index)][name] = value
        bank = {key.removeprefix("bank/"): value for key, value in tensors.items() if key.startswith("bank/")}
        return Checkpoint(facts["step"], lora, optimizers, tensors["generator"], facts, bank)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path.name} is not a checkpoint of a training: delete it and start again.") from error


def latest_checkpoint(folder: Path, skipped: Callable[[str], None] = lambda sentence: None) -> Checkpoint | None:
    """The newest checkpoint in a folder that can be read; None where the folder has none.

    Args:
        skipped: Called with one sentence where newer checkpoints cannot be read.

    Raises:
        CheckpointError: Where there are checkpoints and none of them can be read.
    """
    problem: CheckpointError | None = None
    damaged: list[str] = []
    for step in reversed(_steps(folder)):
        try:
            found = read_checkpoint(_path(folder, step))
        except CheckpointError as error:
            problem = problem or error
            damaged.append(str(step))
            continue
        if damaged:
            skipped(f"The checkpoint of step {' and '.join(damaged)} cannot be read: going on from step {found.step}.")
        return found
    if problem is not None:
        raise problem
    return None


# These may change during a training: the bank and the shapes of adapter and optimisers do not depend on them.
BATCHES = ("batch_erase", "batch_preserve")


def carry_over(source: Path, target: Path, old: ErasureRequest, new: ErasureRequest) -> int:
    """Copies a training's bank and newest checkpoint into another folder, for a request with other batch sizes.

    Args:
        source, target: The folders of the two trainings.
        old, new: Their requests.

    Returns:
        The step from which the new training continues; 0 where the requests differ in more than their batch sizes, or
        where nothing can be copied.

    Raises:
        CheckpointError: Where the copies cannot be written.
    """
    alike = replace(new.config, **{name: getattr(old.config, name) for name in BATCHES})
    if request_digest(replace(new, config=alike)) != request_digest(old) or new.source != old.source:
        return 0
    try:
        checkpoint = latest_checkpoint(source / "checkpoints")
        bank, metadata = read_tensors(source / FILE)
    except CheckpointError:
        return 0
    if checkpoint is None:
        return 0
    write_tensors(target / FILE, bank, metadata, "training's bank")
    facts = {**checkpoint.facts, "request": request_digest(new)}
    write_checkpoint(target / "checkpoints", replace(checkpoint, facts=facts))
    return checkpoint.step


def require_same(checkpoint: Checkpoint, base: str, request: str) -> None:
    """Raises CheckpointError where a checkpoint is of another base model, or of another concept or other settings.

    Args:
        base: The base's fingerprint.
        request: The request's digest, see `request_digest`.
    """
    if checkpoint.facts.get("base") != base:
        raise CheckpointError(
            "The checkpoints here were made with another base model: resume with that model, or train in a new folder."
        )
    if checkpoint.facts.get("request") != request:
        raise CheckpointError(
            "The checkpoints here belong to another concept or other settings: train in a new folder, or restore them."
        )
