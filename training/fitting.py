"""Precision, gradient checkpointing and streamed blocks where they are left open: the fastest way that fits.

A way is settled when a training starts, and kept in its folder: what a resumed training computes must not depend on
what else is in the memory by then.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .config import ErasureRequest
from .files import read_json_or_none, write_json
from .memory import GB, ModelSize, estimate_memory, free_memory, model_size
from .models.device import pick_device
from .models.source import PACKAGES

FILE = "memory.json"  # in a training's folder, where something was decided
RING = 2  # blocks on the device where streaming is decided on


@dataclass(frozen=True)
class Way:
    """One way to train a request. need: bytes that must be free on its device, estimated; waiting: in the computer's
    own memory, for what streams to the device; ring: of `need`, the buffers that blocks stream through."""

    request: ErasureRequest
    need: int
    waiting: int = 0
    ring: int = 0

    @property
    def settings(self) -> dict[str, str | int]:
        """What may be left open, by name."""
        config = self.request.config
        return {
            "precision": self.request.source.precision,
            "gradient_checkpointing": config.gradient_checkpointing,
            "stream_blocks": config.stream_blocks,
        }

    def __str__(self) -> str:
        config, precision = self.request.config, self.request.source.precision
        parts = [precision if precision != "auto" else "fp32"]
        if config.stream_blocks:
            parts.append("streamed blocks")
        elif config.checkpoints_blocks(precision):
            parts.append("gradient checkpointing")
        return " with ".join(parts)


def ways(request: ErasureRequest, size: ModelSize | None = None) -> list[Way]:
    """Every way to train a request, the fastest first; at least one. size: see `estimate_memory`. Raises SourceError.

    Open are: gradient checkpointing on "auto", on any device; precision "auto" on a CUDA or XPU device, and with it
    whether blocks are streamed. Weights on the device in bf16 are fastest without checkpointing and next with it; then
    those in fewer bits, which are cast in every pass (and which compiled blocks cannot have); copying all weights for
    every pass costs most.
    """
    size = size or model_size(request.source)
    estimates = ((one, estimate_memory(one, size)) for one in _open(request))
    return [Way(one, estimate.need, estimate.waiting, estimate.ring) for one, estimate in estimates]


def _open(request: ErasureRequest) -> Iterator[ErasureRequest]:
    kind, config = pick_device(request.device).type, request.config
    precisions, rings = [request.source.precision], [config.stream_blocks]
    if request.source.precision == "auto" and kind != "cpu":
        precisions = ["bf16"]
        if kind in ("cuda", "xpu"):
            fewer = () if config.compile else ("fp8", "nf4")
            precisions += [p for p in fewer if p not in PACKAGES or importlib.util.find_spec(PACKAGES[p])]
            rings += [] if config.stream_blocks else [RING]
    for ring in rings:
        for precision in precisions:
            source = replace(request.source, precision=precision)
            one = replace(request, source=source, config=replace(config, stream_blocks=ring))
            yield one
            if config.gradient_checkpointing == "auto" and not one.config.checkpoints_blocks(precision):
                yield replace(one, config=replace(one.config, gradient_checkpointing="on"))


def fastest(found: list[Way], free: int | None) -> Way:
    """The first way that fits into `free` bytes, and into the computer's memory what waits there; without any, the one
    that needs least. None: nobody can tell, and the first is taken."""
    if free is None:
        return found[0]
    own = free_memory("cpu")
    fitting = (way for way in found if way.need <= free and way.waiting <= own)
    return next(fitting, min(found, key=lambda way: (way.need, way.waiting)))


def settle(request: ErasureRequest, folder: Path, free: int | None = None) -> tuple[ErasureRequest, str]:
    """(the request with nothing left open, a sentence that says what was decided and why; "" where nothing was).

    What was decided for `folder` before stays. free: bytes that are free on the device, where it is not to be asked.
    Raises SourceError.
    """
    found, file = ways(request), folder / FILE
    if len(found) == 1:
        return found[0].request, _ring(found[0])
    kept = _kept(file)
    for way in found:
        if way.settings == kept:
            return way.request, f"Training goes on as it began: {way}. {_ring(way)}".rstrip()
    free = free_memory(request.device) if free is None else free
    way = fastest(found, free)
    if way is found[0] and request.source.precision == way.request.source.precision:
        return way.request, ""  # as if nothing had been open
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, way.settings)
    return way.request, f"{_reason(way, found, free)} {_ring(way)}".rstrip()


def overview(request: ErasureRequest) -> dict[str, Any]:
    """What a training would need, before it starts, as JSON can hold it. Raises SourceError.

    → "free": bytes on its device, None where that cannot be told; "ways", the fastest first: of each its settings,
    "text", "need" (bytes) and whether it "fits" and is "taken" as things are now.
    """
    found, free = ways(request), free_memory(request.device)
    taken = fastest(found, free)
    return {
        "free": free,
        "ways": [
            {
                **way.settings,
                "text": str(way),
                "need": way.need,
                "waiting": way.waiting,
                "ring": way.ring,
                "fits": free is None or way.need <= free,
                "taken": way is taken,
            }
            for way in found
        ],
    }


def settled(request: ErasureRequest, folder: Path) -> ErasureRequest:
    """A request as `folder` trains it; as it would on a device with all memory free, where nothing was decided."""
    return decided(ways(request), folder).request


def decided(found: list[Way], folder: Path) -> Way:
    """Which of the ways was settled on for `folder`; the first, where nothing was."""
    if len(found) == 1:
        return found[0]
    kept = _kept(folder / FILE)
    return next((way for way in found if way.settings == kept), found[0])


def _kept(file: Path) -> dict[str, str | int] | None:
    return read_json_or_none(file)  # None: nothing was decided yet, or a power cut came between: it is decided now


def _ring(way: Way) -> str:
    if not way.ring:
        return ""
    waiting = f", {way.waiting / GB:.1f} GB wait in the computer's memory" if way.waiting else ""
    return f"Blocks stream through {way.ring / GB:.2f} GB of the device's memory{waiting}."


def _reason(way: Way, found: list[Way], free: int | None) -> str:
    if free is None:
        return f"Training in {way}: how much memory is free cannot be told here."
    needs = f"needs about {way.need / GB:.1f} of {free / GB:.1f} GB that are free"
    if way.need > free:
        return f"Training in {way}, which needs least: it {needs}, and may run out."
    faster = found[: found.index(way)]
    if not faster:
        return f"Training in {way}, the fastest way: it {needs}."
    return f"Training in {way}, the fastest way that fits: it {needs}, {faster[-1]} {faster[-1].need / GB:.1f} GB."
