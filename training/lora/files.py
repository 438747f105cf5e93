"""LoRA files: what one holds, conversion into our layout, and merging files into one that says what it was made of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import ConfigError, LoraError
from ..files import sha256_of
from .format import KEY_BASE, KEY_CONCEPT, KEY_METHOD, KEY_VERSION, LoraWeights, open_lora, write_lora
from .inputs import INPUTS_SUFFIX, inputs_path, read_inputs
from .merge import PRESERVE, Source, merge
from .names import validate_name
from .scales import KEY_ADAPTER

KEY_MERGE = (
    "erase_anything.merge"  # JSON: mode, its settings, and of every source file, sha256, weight, concept, method
)
KEY_CONVERTED = "erase_anything.converted"  # JSON: file, sha256 and dialect of what it was converted from
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def new_file(path: str | Path, overwrite: bool = False) -> Path:
    """`path` if a LoRA may be written there: a .safetensors name for every system, and not taken unless `overwrite`.

    Raises ConfigError or LoraError.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path.name} must end in .safetensors.")
    validate_name(path.stem)
    if path.exists() and not overwrite:
        raise LoraError(f"{path.name} exists already: choose another name, or allow it to be replaced.")
    return path


def numbered(path: str | Path) -> Path:
    """`path`, or with the first free number where that is taken: "car.safetensors", "car (2).safetensors", …"""
    path, number = Path(path), 1
    free = path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem} ({number}){path.suffix}")
    return free


def lora_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files themselves, and of folders the LoRA files in them by name (concept inputs left out). LoraError for an
    empty folder."""
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = [
            file
            for file in sorted(path.iterdir())
            if file.suffix.lower() == ".safetensors" and not file.name.lower().endswith(INPUTS_SUFFIX)
        ]
        if not inside:
            raise LoraError(f"The folder {path.name} holds no .safetensors files: choose another one.")
        found += inside
    return found


def mapping_of(text: str | None) -> dict[str, Any]:
    """A JSON object from metadata; {} for anything else, since others may write what they like."""
    try:
        value = json.loads(text or "")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def concept_of(metadata: Mapping[str, str]) -> str | None:
    """The phrase that a LoRA erases, several of a merged one with commas between; None if the file does not say."""
    phrase = mapping_of(metadata.get(KEY_CONCEPT)).get("phrase")
    if isinstance(phrase, str):
        return phrase
    sources = mapping_of(metadata.get(KEY_MERGE)).get("sources")
    phrases = (
        [source.get("concept") for source in sources if isinstance(source, dict)] if isinstance(sources, list) else []
    )
    return ", ".join(dict.fromkeys(each for each in phrases if isinstance(each, str))) or None


def erased_names(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """All phrases and synonyms that a LoRA, or the LoRAs merged into it, erase; () if the file does not say."""
    found: list[object] = []

    def add(record: Mapping[str, Any], phrase: str) -> None:
        synonyms, sources = record.get("synonyms"), record.get("sources")
        found.extend([record.get(phrase), *(synonyms if isinstance(synonyms, list) else [])])
        for source in sources if isinstance(sources, list) else []:
            if isinstance(source, dict):
                add(source, "concept")

    add(mapping_of(metadata.get(KEY_CONCEPT)), "phrase")
    add(mapping_of(metadata.get(KEY_MERGE)), "concept")
    # of a merge of merges, "concept" is a list with commas, whose parts its own sources name
    names = [name for name in found if isinstance(name, str) and name.strip() and ", " not in name]
    return tuple(dict.fromkeys(names))


def describe(path: str | Path) -> dict[str, Any]:
    """What a LoRA file is: "concept" and "method" (None where it does not say), "rank" (the highest), "ranks",
    "targets" (layers without their block; "single: …" in single blocks), "blocks" (how many), "tensors", "parameters",
    "host_format" (whether ComfyUI's Load LoRA reads it alike), "dialect", "dtypes", "base", "inputs" (whether concept
    inputs lie beside it), "merge" (of a merged one: mode, settings, sources), "notes". Raises LoraError.
    """
    path = Path(path)
    file = open_lora(path)
    layers = [re.sub(r"^(single_)?transformer_blocks\.\d+\.", r"\1", module) for module in file.weights]
    blocks = {match[0] for module in file.weights if (match := re.match(r"\w*transformer_blocks\.\d+", module))}
    ranks = sorted({len(a) for a, _, _ in file.weights.values()})
    return {
        "file": path.name,
        "concept": concept_of(file.metadata),
        "method": file.metadata.get(KEY_METHOD),
        "rank": ranks[-1],
        "ranks": ranks,
        "targets": sorted({layer.replace("single_", "single: ", 1) for layer in layers}),
        "blocks": len(blocks),
        "tensors": file.tensors,
        "parameters": file.parameters,
        "host_format": file.host_format,
        "dialect": file.dialect,
        "dtypes": list(file.dtypes),
        "base": file.metadata.get(KEY_BASE),
        "inputs": inputs_path(path).is_file(),
        "merge": mapping_of(file.metadata.get(KEY_MERGE)) or None,
        "notes": list(file.notes),
    }


def convert(path: str | Path, out: str | Path, *, dtype: str = "auto", overwrite: bool = False) -> dict[str, Any]:
    """Write a LoRA of any dialect in our layout; `describe`'s result for it.

    A, B and alpha of a LoRA keep their values; "notes" say what was left out, and what was no LoRA and became one.

    dtype: "auto" is the file's own. Raises ConfigError and LoraError; then nothing is written.
    """
    path, out = Path(path), new_file(out, overwrite)
    file = open_lora(path)
    weights = _for_diffusers(file.weights)
    if dtype == "auto":
        own = [getattr(torch, name) for name in file.dtypes]
        # what became a LoRA when it was read has numbers of its own
        fits = len(own) == 1 and own[0] in DTYPES.values() and not rounding_error(weights, own[0])
        number = own[0] if fits else torch.float32
    else:
        number = _dtype(dtype)
    origin = {"file": path.name, "sha256": sha256_of(path), "dialect": file.dialect}
    # diffusers refuses alpha in tensors and in metadata at once
    metadata = {name: text for name, text in file.metadata.items() if name != KEY_ADAPTER}
    metadata[KEY_CONVERTED] = json.dumps(origin, sort_keys=True)
    write_lora(out, weights, metadata, number)
    return {**describe(out), "notes": list(file.notes)}


def _for_diffusers(weights: LoraWeights) -> LoraWeights:
    """The same changes, with one rank and alpha for all layers that are called proj_out.

    diffusers and PEFT take a layer's rank and alpha by the end of its name, so what they read of the model's own
    `proj_out` counts for that of every single block too.
    """
    ends = [name for name in weights if name.split(".")[-1] == "proj_out"]
    if "proj_out" not in weights or len({(len(weights[name][0]), weights[name][2]) for name in ends}) == 1:
        return weights
    rank = max(len(weights[name][0]) for name in ends)
    unified = dict(weights)
    for name in ends:
        a, b, alpha = weights[name]
        more = rank - len(a)
        a = torch.nn.functional.pad(a, (0, 0, 0, more))
        unified[name] = (a, torch.nn.functional.pad(b * (alpha / (rank - more)), (0, more)), float(rank))
    return unified


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ConfigError(f"Unknown number type {name!r}: choose one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def merge_files(
    paths: Sequence[str | Path],
    out: str | Path,
    mode: str = "fusion",
    *,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    error: float | None = None,
    preserve: float = PRESERVE,
    dtype: str = "fp32",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Merge LoRA files of any dialect (see `merge.merge`) into one in our layout, and return the report.

    weights: one per file (default: 1 each). dtype: "fp32", or "bf16" and "fp16", which round (the report's "rounding"
    is the relative Frobenius error of that, estimated). The report is `merge.merge`'s with "file", "dtype", and every
    source's "sha256" and "concept" added; the metadata says the same in short. Raises ConfigError and LoraError; then
    nothing is written.
    """
    files, number = [Path(path) for path in paths], _dtype(dtype)
    out = new_file(out, overwrite)
    if weights is None:
        weights = [1.0] * len(files)
    if len(weights) != len(files):
        raise ConfigError(f"There are {len(files)} LoRAs and {len(weights)} weights: give one weight for each.")
    sources: list[Source] = []
    origins: list[dict[str, Any]] = []
    notes: list[str] = []
    bases: dict[str, str] = {}  # fingerprint → the first file that was trained on it
    for path, weight in zip(files, weights, strict=True):
        file = open_lora(path)
        sources.append(Source(path.stem, file.weights, float(weight), read_inputs(inputs_path(path))))
        notes += file.notes
        origin = {
            "file": path.name,
            "sha256": sha256_of(path),
            "weight": float(weight),
            "concept": concept_of(file.metadata),
            "method": file.metadata.get(KEY_METHOD),
        }
        synonyms = mapping_of(file.metadata.get(KEY_CONCEPT)).get("synonyms")
        if isinstance(synonyms, list):
            origin["synonyms"] = synonyms
        earlier = mapping_of(file.metadata.get(KEY_MERGE)).get("sources")
        if earlier is not None:
            origin["sources"] = earlier
        origins.append(origin)
        if weight and KEY_BASE in file.metadata:
            bases.setdefault(file.metadata[KEY_BASE], path.name)
    if len(bases) > 1:
        notes.append(f"{' and '.join(list(bases.values())[:2])} were trained on different base models.")
    merged = merge(sources, mode, rank=rank, error=error, preserve=preserve, progress=progress)
    del sources  # their memory is needed for writing
    settings = {"rank": rank, "error": error, "preserve": preserve if mode == "fusion" else None}
    facts = {"mode": mode, **{k: v for k, v in settings.items() if v is not None}, "sources": origins}
    metadata = {KEY_MERGE: json.dumps(facts, sort_keys=True), KEY_METHOD: f"merge ({mode})", KEY_VERSION: __version__}
    if len(bases) == 1:
        metadata[KEY_BASE] = next(iter(bases))
    written = _for_diffusers(merged.weights)
    write_lora(out, written, metadata, number)
    report = merged.report
    report["sources"] = [
        {**row, **{key: origin[key] for key in ("file", "sha256", "concept")}}
        for row, origin in zip(report["sources"], origins, strict=True)
    ]
    rounding = 0.0 if number == torch.float32 else rounding_error(written, number)
    return {"file": str(out), **report, "dtype": dtype, "rounding": rounding, "notes": [*notes, *report["notes"]]}


def rounding_error(weights: LoraWeights, dtype: torch.dtype, probes: int = 16) -> float:
    """Relative Frobenius error of A and B rounded to `dtype`, estimated from random vectors (E ‖M z‖² = ‖M‖²)."""
    generator = torch.Generator().manual_seed(0)
    lost = total = 0.0
    for a, b, _ in weights.values():
        z = torch.randn(a.shape[1], probes, generator=generator)
        exact = b @ (a @ z)
        lost += float((b.to(dtype).float() @ (a.to(dtype).float() @ z) - exact).square().sum())
        total += float(exact.square().sum())
    return (lost / total) ** 0.5 if total else 0.0
