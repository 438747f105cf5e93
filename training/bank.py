"""The trajectory bank: points of the base model's sampling trajectories with the teacher's outputs, and its file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .concepts import Concept
from .errors import CheckpointError
from .files import replacing
from .flow import Flow, Progress
from .models.batches import batches, trajectories_at_once
from .models.sampling import initial_noise, trajectory
from .models.text import TextEmbeds

FILE = "bank.safetensors"  # in a training's folder


def used_steps(levels: Tensor, t_min: float) -> int:
    """How many Euler steps from the start have t > t_min, where velocities are asked for (at least one)."""
    return max(1, int((levels[:-1] > t_min).sum()))


@torch.no_grad()
def record(
    flow: Flow,
    embeds: TextEmbeds,
    rows: Sequence[int],
    seeds: Sequence[int],
    others: Mapping[str, Sequence[int]],
    steps: int,
    progress: Progress,
    student: bool = False,
) -> dict[str, Tensor]:
    """Trajectories of the base, and at each of their points x_t the teacher's velocities under several prompts.

    Args:
        rows: prompts (rows of `embeds`) of the trajectories; the velocity under them, "own", makes the Euler steps.
        seeds: of the trajectories' noise, one each.
        others: further prompts to record velocities under: name → one row per trajectory.
        steps: Euler steps along `flow.levels`, after which trajectories stop.
        progress: counts forward passes; may raise.
        student: the adapter is on for the Euler steps, and only for them: points that the student visits.

    Returns:
        {"row" [M], "t" [M], "x" [M, N, C], "own" [M, N, C], name [M, N, C]…} with M = trajectories × steps, all of one
        trajectory's points together.
    """
    noise = initial_noise(list(seeds), flow.grid, flow.channels)
    stored = torch.float32 if next(flow.transformer.parameters()).dtype == torch.float32 else torch.bfloat16
    parts: dict[str, list[Tensor]] = {name: [] for name in ("x", "own", *others)}
    chunks = list(batches(len(rows), trajectories_at_once(flow.transformer.config.num_attention_heads)))
    passes = 1 + len(others) + student
    total, done = len(chunks) * steps * passes, 0
    for part in chunks:
        points: dict[str, list[Tensor]] = {name: [] for name in parts}

        def predict(latents: Tensor, t: float, part: slice = part, points: dict[str, list[Tensor]] = points) -> Tensor:
            nonlocal done
            own = flow.teacher(latents, t, embeds[list(rows[part])])
            points["x"].append(latents.to("cpu", stored))
            points["own"].append(own.to("cpu", stored))
            for name, other in others.items():
                points[name].append(flow.teacher(latents, t, embeds[list(other[part])]).to("cpu", stored))
            if student:
                own = flow.student(latents, t, embeds[list(rows[part])])
            done += passes
            progress(done, total)
            return own

        trajectory(predict, noise[part].to(flow.device), flow.levels, steps)
        for name, values in points.items():
            parts[name].append(torch.stack(values, dim=1).flatten(0, 1))  # [B, steps, N, C] → [B · steps, N, C]
    return {
        "row": torch.tensor(list(rows)).repeat_interleave(steps),
        "t": flow.levels[:steps].repeat(len(rows)),
        **{name: torch.cat(values) for name, values in parts.items()},
    }


@dataclass(frozen=True)
class BankKey:
    """What a stored bank must agree with to be used again.

    Attributes:
        base: the base model's fingerprint.
        request: see `checkpoint.bank_request_digest`.
        prompts: the texts behind the rows.
    """

    base: str
    request: str
    prompts: Sequence[str]

    def metadata(self) -> dict[str, str]:
        """As the file holds it."""
        return {"base": self.base, "request": self.request, "prompts": json.dumps(list(self.prompts))}


def write_bank(path: Path, key: BankKey, concept: Concept, bank: Mapping[str, Tensor], embeds: TextEmbeds) -> None:
    """Writes a method's bank with the embeddings of its prompts, atomically. Raises CheckpointError."""
    tensors = {**bank, "embeds.t5": embeds.t5, "embeds.pooled": embeds.pooled}
    write_tensors(path, tensors, {**key.metadata(), "concept": json.dumps(concept.to_dict())}, "training's bank")


def read_bank(
    path: Path, key: BankKey, expected: str | None, notice: Callable[[str], None]
) -> tuple[dict[str, Tensor], TextEmbeds] | None:
    """The bank and the embeddings that `write_bank` wrote under the same key; None where it must be made (again).

    Args:
        expected: the `digest` of the bank that a checkpoint was trained on; None where there is no checkpoint.
        notice: called with one sentence that says why an existing file cannot be used.

    Raises:
        CheckpointError: there is a checkpoint, and its prompts were others.
    """
    if not path.is_file():
        return None
    try:
        tensors, metadata = read_tensors(path)
    except CheckpointError:
        notice("The bank of an earlier run cannot be read: it is made again.")
        return None
    ours = key.metadata()
    if any(metadata.get(name) != ours[name] for name in ("base", "request")):
        return None
    if metadata.get("prompts") != ours["prompts"]:
        if expected is None:
            return None
        raise CheckpointError(
            "This training began with other prompts than this version of the pack makes (or WordNet's data make "
            "here): train in a new folder."
        )
    bank = {name: tensor for name, tensor in tensors.items() if not name.startswith("embeds.")}
    if expected is not None and expected != digest(bank):
        notice("The bank of an earlier run is damaged: it is made again.")
        return None
    return bank, TextEmbeds(tensors["embeds.t5"], tensors["embeds.pooled"])


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], what: str) -> None:
    """Writes a safetensors file atomically: at `path` is the old file or the whole new one. Raises CheckpointError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata=dict(metadata))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The {what} cannot be written: free some space or check the folder's permissions ({reason(error)})."
        ) from error


def reason(error: Exception) -> str:
    """Why the system refused, without the paths that it puts around it."""
    return getattr(error, "strerror", None) or str(error)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (CPU) and metadata of a safetensors file. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path.name} cannot be read ({error}): delete it and start again.") from error


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and bytes, to tell whether two banks are the same."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:32]
