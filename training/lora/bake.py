"""Writes a Flux checkpoint with LoRAs folded into it, for pipelines that take no LoRA.

One tensor at a time is read, changed and written: safetensors' own writer wants all of them in memory at once, and a
mapped file counts as memory too where it is touched.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import ConfigError, LoraError
from ..files import replacing, sha256_of
from ..models.native_layout import diffusers_parts
from ..models.source import weight_files
from ..models.weights import FLOATS, QUANTISED_KEYS, native_prefix, read_whole_header, torch_dtype
from .files import concept_of, new_file
from .format import LoraWeights, encode_header, open_lora

KEY_BAKED = "erase_anything.baked"  # JSON list: file, sha256, strength and concept of every LoRA folded in
BLOCK = 16 << 20  # bytes copied at once
ROWS = 32 << 20  # numbers of a weight that are computed with in fp32 at once


@dataclass(frozen=True)
class Change:
    """rows of a stored weight += scale * b @ a."""

    rows: slice
    b: Tensor
    a: Tensor
    scale: float


def bake(
    source: str | Path,
    loras: Sequence[str | Path],
    out: str | Path,
    *,
    strengths: Sequence[float] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write `source` with the LoRAs folded in to `out`: W + Σ strength · alpha / rank · B A, in the weights' own dtype.

    source: a transformer as one .safetensors file (native or diffusers' names, also a checkpoint that holds more than
    it), a folder in diffusers layout, or its transformer folder; sharded or not. All other tensors and files are copied
    as they are. out: the same kind, new unless `overwrite` (which only replaces files). strengths: one per LoRA
    (default: 1 each). progress(done, total) counts bytes. → {"file", "changed" (tensors), "tensors", "bytes", "loras",
    "notes"}. Raises ConfigError, LoraError and SourceError; then nothing is written.
    """
    source, out = Path(source), Path(out)
    strengths = [1.0] * len(loras) if strengths is None else list(strengths)
    if not loras or len(strengths) != len(loras):
        raise ConfigError(f"There are {len(loras)} LoRAs and {len(strengths)} strengths: give one strength for each.")
    if not all(math.isfinite(strength) for strength in strengths):
        raise ConfigError("A LoRA's strength is no finite number: give every LoRA one.")
    folder = source.is_dir()
    if folder:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise LoraError(f"{out.name} exists already: choose another name for the folder.")
        if source.resolve() in (out.resolve(), *out.resolve().parents):
            raise LoraError("The new folder lies inside the one it is made from: choose another place.")
        part = "transformer" if (source / "transformer").is_dir() else "."
        files = weight_files(source / part)
    else:
        out, files = new_file(out, overwrite), [source]
        if out.exists() and source.exists() and out.samefile(source):
            raise LoraError(f"{out.name} is the checkpoint itself: choose another name.")
    opened = [open_lora(path) for path in loras]
    lacking = [set(each.weights) for each in opened]
    plans = {file: _plan(file, [each.weights for each in opened], strengths, lacking) for file in files}
    for path, modules in zip(loras, lacking, strict=True):
        if modules:
            name = Path(path).name
            raise LoraError(f"{name} was made for another Flux: {source.name} has no {min(modules)}.")
    origins = [
        {
            "file": Path(path).name,
            "sha256": sha256_of(Path(path)),
            "strength": float(strength),
            "concept": concept_of(each.metadata),
        }
        for path, strength, each in zip(loras, strengths, opened, strict=True)
    ]
    total = sum(file.stat().st_size for file in (source.rglob("*") if folder else files) if file.is_file())
    target = out.resolve()
    free = shutil.disk_usage(next(parent for parent in target.parents if parent.exists())).free
    if free < total:
        raise LoraError(f"The disk has {free / 1e9:.1f} GB free and {total / 1e9:.1f} GB are needed: free some space.")
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, total)

    with _temporary(target, folder) as temporary:
        for file in sorted(source.rglob("*")) if folder else []:
            if file in plans or (file.suffix == ".safetensors" and file.parent in {each.parent for each in plans}):
                continue  # weights beside those in use, of a second precision say, would stay without the LoRA
            copy = temporary / file.relative_to(source)
            if file.is_dir():
                copy.mkdir(parents=True, exist_ok=True)
            else:
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
                count(file.stat().st_size)
        for file, changes in plans.items():
            copy = temporary / file.relative_to(source) if folder else temporary
            copy.parent.mkdir(parents=True, exist_ok=True)
            _write(file, copy, changes, origins, count)
    return {
        "file": str(out),
        "tensors": sum(len(read_whole_header(file)[0]) for file in files),
        "changed": sum(map(len, plans.values())),
        "bytes": total,
        "loras": origins,
        "notes": [note for each in opened for note in each.notes],
    }


def _plan(
    file: Path, loras: Sequence[LoraWeights], strengths: Sequence[float], lacking: Sequence[set[str]]
) -> dict[str, list[Change]]:
    """Tensor of a checkpoint file → what is added to it. LoraError where a LoRA does not fit.

    What is found is taken out of `lacking`, the layers of every LoRA that are still to be found.
    """
    header, _ = read_whole_header(file)
    header.pop("__metadata__", None)
    prefix = native_prefix(header)
    plan: dict[str, list[Change]] = {}
    for name, entry in header.items():
        if not name.endswith(".weight") or not name.startswith(prefix) or len(entry["shape"]) != 2:
            continue
        module, (rows, columns) = name[len(prefix) :].removesuffix(".weight"), entry["shape"]
        parts = diffusers_parts(module, rows, columns) or {module: [slice(0, rows)]}
        for weights, strength, missing in zip(loras, strengths, lacking, strict=True):
            for part, pieces in parts.items():
                if part not in weights:
                    continue
                a, b, alpha = weights[part]
                if entry["dtype"] not in FLOATS:
                    raise LoraError(f"{file.name} is quantised ({entry['dtype']}): choose bf16, fp16 or fp8 weights.")
                if a.shape[1] != columns or len(b) != sum(piece.stop - piece.start for piece in pieces):
                    raise LoraError(f"The LoRA was made for another Flux (its {part} does not fit {file.name}).")
                missing.discard(part)
                scale, start = strength * alpha / len(a), 0
                for piece in pieces:
                    size = piece.stop - piece.start
                    plan.setdefault(name, []).append(Change(piece, b[start : start + size], a, scale))
                    start += size
    if plan and any(name.endswith(QUANTISED_KEYS) for name in header):
        raise LoraError(f"{file.name} is scaled fp8, whose weights cannot be changed alone: choose bf16 or fp16.")
    return plan


@contextmanager
def _temporary(target: Path, folder: bool) -> Iterator[Path]:
    """A place beside `target` that takes its name in the end, or vanishes after an error."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _replacing_folder(target) if folder else replacing(target) as temporary:
            yield temporary
    except OSError as error:
        full = error.errno == errno.ENOSPC
        why = "the disk is full, free some space" if full else f"check the folder's permissions ({error})"
        raise LoraError(f"{target.name} cannot be written: {why}.") from error


@contextmanager
def _replacing_folder(target: Path) -> Iterator[Path]:
    temporary = target.with_name(f".{target.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if target.is_dir():
            target.rmdir()  # empty, as was checked
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(
    source: Path, target: Path, changes: Mapping[str, list[Change]], origins: list[dict], count: Callable[[int], None]
) -> None:
    """Copy a safetensors file with the changes made, its tensors where they were."""
    header, start = read_whole_header(source)
    metadata = {**header.get("__metadata__", {}), KEY_BAKED: json.dumps(origins, sort_keys=True)}
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    with source.open("rb") as old, target.open("wb") as new:
        new.write(encode_header({"__metadata__": dict(sorted(metadata.items())), **entries}))
        place = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            _copy(old, new, start + place, begin - place)  # gaps, if a writer left any
            if name in changes:
                _change(old, new, start + begin, entry, changes[name])
            else:
                _copy(old, new, start + begin, end - begin)
            place = end
            count(end - begin)
        new.flush()
        os.fsync(new.fileno())


def _copy(old: BinaryIO, new: BinaryIO, start: int, size: int) -> None:
    old.seek(start)
    while size > 0:
        block = old.read(min(size, BLOCK))
        if not block:
            raise LoraError("The checkpoint became shorter while it was read: start again.")
        new.write(block)
        size -= len(block)


def _change(old: BinaryIO, new: BinaryIO, start: int, entry: Mapping[str, Any], changes: Sequence[Change]) -> None:
    """One weight, some rows at a time: computed in fp32 (fp64 stays so), rounded once."""
    dtype, (rows, columns) = torch_dtype(entry["dtype"]), entry["shape"]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    old.seek(start)
    step = max(1, ROWS // columns)
    for first in range(0, rows, step):
        last = min(rows, first + step)
        raw = bytearray(old.read((last - first) * columns * dtype.itemsize))
        weight = torch.frombuffer(raw, dtype=dtype).view(last - first, columns).to(wide)
        for change in changes:
            low, high = max(first, change.rows.start), min(last, change.rows.stop)
            if low < high:
                b = change.b[low - change.rows.start : high - change.rows.start].to(wide)
                weight[low - first : high - first].addmm_(b, change.a.to(wide), alpha=change.scale)
        new.write(weight.to(dtype).contiguous().view(torch.uint8).numpy().tobytes())
