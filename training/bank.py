"""The trajectory bank: points of the base model's sampling trajectories with the teacher's outputs there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError
from .files import replacing
from .flow import Flow, Progress
from .models.sampling import initial_noise
from .models.text import TextEmbeds

CHUNK = 32  # samples per forward pass on small models
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
    """Trajectories of the base under prompts `rows` (one seed each), stopped after `steps` steps of the sigma grid.

    At every point x_t of a trajectory the teacher's velocity is kept: under the trajectory's own prompt (name "own",
    which also makes the Euler step) and under other prompts (`others`: name → one row per trajectory). With `student`
    the adapter is on for the Euler steps, and only for them: where the student comes by, what would the base do there?
    → {"row" [M], "t" [M], "x" [M, N, C], "own" [M, N, C], name [M, N, C]…} with M = trajectories × steps, all of one
    trajectory's points together. progress(done, total) counts forward passes.
    """
    chunk = CHUNK if flow.transformer.config.num_attention_heads < 24 else 1
    noise = initial_noise(list(seeds), flow.grid, flow.channels)
    keep = torch.float32 if next(flow.transformer.parameters()).dtype == torch.float32 else torch.bfloat16
    parts: dict[str, list[Tensor]] = {name: [] for name in ("x", "own", *others)}
    starts = range(0, len(rows), chunk)
    passes = 1 + len(others) + student
    total, done = len(starts) * steps * passes, 0
    for start in starts:
        part = slice(start, start + chunk)
        latents = noise[part].to(flow.device)
        points: dict[str, list[Tensor]] = {name: [] for name in parts}
        for step in range(steps):
            now, then = float(flow.levels[step]), float(flow.levels[step + 1])
            t = torch.full((len(latents),), now)
            own = flow.teacher(latents, t, embeds[list(rows[part])])
            points["x"].append(latents.to("cpu", keep))
            points["own"].append(own.to("cpu", keep))
            for name, other in others.items():
                points[name].append(flow.teacher(latents, t, embeds[list(other[part])]).to("cpu", keep))
            if student:
                own = flow.student(latents, t, embeds[list(rows[part])])
            latents = latents + (then - now) * own
            done += passes
            progress(done, total)
        for name, values in points.items():
            parts[name].append(torch.stack(values, dim=1).flatten(0, 1))  # [B, steps, N, C] → [B · steps, N, C]
    return {
        "row": torch.tensor(list(rows)).repeat_interleave(steps),
        "t": flow.levels[:steps].repeat(len(rows)),
        **{name: torch.cat(values) for name, values in parts.items()},
    }


def write_bank(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors and metadata (texts) as one safetensors file, atomically. Raises CheckpointError."""
    write_tensors(path, tensors, metadata, "training's bank")


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
