"""What every stage of the demo build shares: a resumable training loop with a progress bar, and a schedule."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm


def autocast(device: torch.device) -> torch.autocast:
    """bf16 autocast: the stages are trained in mixed precision with fp32 master weights."""
    return torch.autocast(device.type, torch.bfloat16)


def cosine(step: int, total: int, warmup: int, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def plateau(step: int, total: int, warmup: int, decay: float = 0.3) -> float:
    """Learning-rate factor: linear warm-up, level, then linearly down over the last `decay` of the steps.

    A run that stopped on the level can be given a larger `total` and goes on as if it had always had it.
    """
    return min(1.0, (step + 1) / warmup, max(0.01, (total - step) / (decay * total)))


def save_atomically(state: object, path: Path) -> None:
    """torch.save that a crash cannot leave half written."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def train(
    name: str,
    total: int,
    step_fn: Callable[[int], dict[str, float]],
    state: dict[str, object],
    path: Path,
    rank: int = 0,
    before_save: Callable[[], None] = lambda: None,
    save_every: int = 100,
) -> None:
    """Run `step_fn(step)` from the last checkpoint to `total`.

    `state` maps names to objects with state_dict/load_state_dict; rank 0 saves them to `path` every `save_every` steps
    and at the end, together with torch's RNG state, so that a stopped build goes on where it was. `before_save` runs on
    every replica, at the same steps.
    """
    start = 0
    if path.exists():
        saved = torch.load(path, map_location="cpu", weights_only=True)
        start = saved["step"]
        torch.set_rng_state(saved["rng"])
        for key, item in state.items():
            item.load_state_dict(saved[key])  # type: ignore[attr-defined]

    def save(step: int) -> None:
        before_save()
        if rank:
            return
        parts = {key: item.state_dict() for key, item in state.items()}  # type: ignore[attr-defined]
        save_atomically({"step": step, "rng": torch.get_rng_state(), **parts}, path)

    averages: dict[str, float] = {}
    with tqdm(total=total, initial=start, desc=name, mininterval=5, smoothing=0.05, disable=rank > 0) as bar:
        for step in range(start, total):
            for key, value in step_fn(step).items():
                averages[key] = value if key not in averages else 0.98 * averages[key] + 0.02 * value
            bar.update()
            if step % 20 == 0:
                bar.set_postfix({key: f"{value:.4f}" for key, value in averages.items()}, refresh=False)
            if (step + 1) % save_every == 0 or step + 1 == total:
                save(step + 1)
