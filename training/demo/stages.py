"""What every stage of the demo build shares: a resumable training loop with a progress bar, and a schedule."""

from __future__ import annotations

import math
import os
import time
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
    save_seconds: float = 120.0,
) -> None:
    """Run `step_fn(step)` from the last checkpoint to `total`.

    `state` maps names to objects with state_dict/load_state_dict; they are saved to `path` every `save_seconds` and at
    the end, together with torch's RNG state, so that a stopped build goes on where it was.
    """
    start = 0
    if path.exists():
        saved = torch.load(path, map_location="cpu", weights_only=True)
        start = saved["step"]
        torch.set_rng_state(saved["rng"])
        for key, item in state.items():
            item.load_state_dict(saved[key])  # type: ignore[attr-defined]

    def save(step: int) -> None:
        parts = {key: item.state_dict() for key, item in state.items()}  # type: ignore[attr-defined]
        save_atomically({"step": step, "rng": torch.get_rng_state(), **parts}, path)

    last_save = time.monotonic()
    averages: dict[str, float] = {}
    with tqdm(total=total, initial=start, desc=name, mininterval=5, smoothing=0.05) as bar:
        for step in range(start, total):
            for key, value in step_fn(step).items():
                averages[key] = value if key not in averages else 0.98 * averages[key] + 0.02 * value
            bar.update()
            if step % 20 == 0:
                bar.set_postfix({key: f"{value:.4f}" for key, value in averages.items()}, refresh=False)
            if time.monotonic() - last_save > save_seconds:
                save(step + 1)
                last_save = time.monotonic()
    save(total)
