"""The LoRA file: what ComfyUI's Load LoRA and diffusers' load_lora_weights both read, with our metadata.

Written in one layout, read in every dialect of `dialects`.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import LoraError
from ..flux.native_layout import diffusers_parts, linear_widths
from .dialects import NOT_LORA, QKV_OF_LINEAR1, LoraKey, is_text_encoder, parse_key

# module name in FluxTransformer2DModel -> (A [rank, in], B [out, rank], alpha); W is changed by alpha / rank * B @ A
LoraWeights = dict[str, tuple[Tensor, Tensor, float]]

PREFIX = "transformer."
KEY_CONCEPT = "erase_anything.concept"  # JSON of Concept.to_dict()
KEY_METHOD = "erase_anything.method"
KEY_BASE = "erase_anything.base"  # FluxSource.fingerprint() of the transformer it was trained on
KEY_CONFIG = "erase_anything.config"  # JSON of ErasureConfig.to_dict()
KEY_METRICS = "erase_anything.metrics"  # JSON
KEY_VERSION = "erase_anything.version"  # of this pack


def make_metadata(
    *, concept: Mapping, method: str, base: str, config: Mapping, metrics: Mapping, version: str
) -> dict[str, str]:
    """The metadata every erasure LoRA carries: safetensors allows strings only, so mappings become JSON."""
    return {
        KEY_CONCEPT: json.dumps(concept, sort_keys=True), KEY_METHOD: method, KEY_BASE: base,
        KEY_CONFIG: json.dumps(config, sort_keys=True), KEY_METRICS: json.dumps(metrics, sort_keys=True),
        KEY_VERSION: version,
    }  # fmt: skip


def write_lora(
    path: str | Path, weights: LoraWeights, metadata: Mapping[str, str], dtype: torch.dtype = torch.float32
) -> None:
    """Write the file atomically: at `path` there is the old file or the whole new one, never a part. LoraError if it
    fails.

    dtype is that of A and B; alpha is stored in fp32.
    """
    path = Path(path)
    if not weights:
        raise LoraError("There are no LoRA weights to write: the adapter has no target modules.")
    tensors: dict[str, Tensor] = {}
    for module, (a, b, alpha) in weights.items():
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise LoraError(
                f"The LoRA of {module} has shapes {tuple(a.shape)} and {tuple(b.shape)}, which do not multiply."
            )
        a, b = (matrix.detach().to("cpu", dtype).contiguous() for matrix in (a, b))
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise LoraError(
                f"The LoRA of {module} holds infinite or undefined numbers: train again with a lower learning rate."
            )
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b
        tensors[f"{PREFIX}{module}.alpha"] = torch.tensor(float(alpha))
    (header, data), temporary = _serialized(tensors, {"format": "pt", **metadata}), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # in the same folder, so that the replacement is one rename; the suffix keeps it out of the host's LoRA list
        handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(header)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        why = "the disk is full, free some space" if full else f"check the folder's permissions ({error.strerror})"
        raise LoraError(f"The LoRA {path.name} cannot be written: {why}.") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def _serialized(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> tuple[bytes, memoryview]:
    """Header and tensors of a safetensors file; the library leaves the order of metadata to chance, here it is sorted,
    so that the same training gives the same file."""
    data = save(tensors, metadata=metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    return encode_header(header), memoryview(data)[end:]


def encode_header(header: Mapping) -> bytes:
    """The first bytes of a safetensors file: the header's length, and the header with spaces up to a multiple of 8."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a LoRA file ({} if it has none), without reading its weights."""
    with _opened(Path(path)) as file:
        return dict(file.metadata() or {})


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file as it was read.

    weights: fp32 on the CPU, under diffusers' names; dialect: that of its keys (see `dialects`), or "mixed";
    host_format: whether ComfyUI's Load LoRA knows every key; tensors, parameters (of A and B), dtypes (of A and B):
    what is in the file; notes: sentences about what was left out.
    """

    weights: LoraWeights
    metadata: dict[str, str]
    dialect: str
    host_format: bool
    tensors: int
    parameters: int
    dtypes: tuple[str, ...]
    notes: tuple[str, ...]


def read_lora(path: str | Path) -> tuple[LoraWeights, dict[str, str]]:
    """Weights (fp32, CPU) and metadata of a Flux LoRA in any dialect; LoraError if it is anything else."""
    file = open_lora(path)
    return file.weights, file.metadata


def open_lora(path: str | Path) -> LoraFile:
    """A Flux LoRA in any dialect; LoraError, one sentence, if it is anything else.

    Fused projections are split into diffusers' own, each with a copy of A. A missing alpha means rank (scale 1), as
    ComfyUI and diffusers read it. What changes text encoders is left out, with a note: this pack works on transformers.
    Pickled files are never loaded, since unpickling runs code.
    """
    path = Path(path)
    with _opened(path) as file:
        names, metadata = list(file.keys()), dict(file.metadata() or {})
        text = [name for name in names if is_text_encoder(name)]
        keys = _understood(path, [name for name in names if not is_text_encoder(name)])
        try:
            tensors = {name: file.get_tensor(name) for name in keys}
        except Exception as error:  # whatever the library raises for types that torch lacks
            raise LoraError(f"{path.name} holds numbers that cannot be read: download it again.") from error
    layers: dict[tuple[str, bool], dict[str, Tensor]] = {}
    for name, key in keys.items():
        layer = layers.setdefault((key.module, key.native), {})
        if key.role in layer:
            raise LoraError(f"{path.name} has two LoRAs of {key.module}: choose a file that was not mixed of two.")
        layer[key.role] = tensors[name]
    weights: LoraWeights = {}
    for (module, native), layer in layers.items():
        for part, value in _parts(module, native, _checked(path, module, layer)).items():
            if part in weights:
                raise LoraError(f"{path.name} has two LoRAs of {part}: choose a file that was not mixed of two.")
            weights[part] = value
    _check_widths(path, weights)
    dialects = sorted({key.dialect for key in keys.values()})
    matrices = [tensors[name] for name, key in keys.items() if key.role != "alpha"]
    kinds = {str(matrix.dtype).removeprefix("torch.") for matrix in matrices}
    notes = []
    if text:
        notes.append(f"{path.name}: {len(text)} tensors for the text encoders were left out ({text[0]}, …).")
    return LoraFile(
        weights, metadata, dialects[0] if len(dialects) == 1 else "mixed",
        host_format=all(key.host for key in keys.values()), tensors=len(names),
        parameters=sum(matrix.numel() for matrix in matrices), dtypes=tuple(sorted(kinds)), notes=tuple(notes),
    )  # fmt: skip


def _understood(path: Path, names: Iterable[str]) -> dict[str, LoraKey]:
    """The names of the transformer's tensors with what they are for; LoraError for any that no Flux LoRA has."""
    keys, foreign = {}, []
    for name in names:
        key = parse_key(name)
        if key is None:
            foreign.append(name)
        else:
            keys[name] = key
    for ends, kind in NOT_LORA:
        if any(name.endswith(ends) for name in foreign):
            raise LoraError(f"{path.name} is {kind}, which is no sum of low-rank matrices: choose a plain LoRA.")
    if foreign or not keys:
        example = f" (it holds {min(foreign)[:100]!r})" if foreign else ""
        raise LoraError(f"{path.name} is not a Flux LoRA{example}: choose another file.")
    return keys


def _checked(path: Path, module: str, layer: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, float]:
    """(A, B, alpha) of one layer in fp32; LoraError if one lacks, does not multiply or is no number."""
    for role, what in (("A", "lora_A"), ("B", "lora_B")):
        if role not in layer:
            raise LoraError(f"{path.name} lacks {what} of {module}: train or download it again.")
    a, b = layer["A"], layer["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise LoraError(f"{path.name} has matrices that do not multiply at {module}: train or download it again.")
    alpha = layer.get("alpha", torch.tensor(float(len(a))))
    if alpha.numel() != 1 or not (a.is_floating_point() and b.is_floating_point()):
        raise LoraError(f"{path.name} has an alpha or matrices of a wrong kind at {module}: download it again.")
    a, b, alpha = a.float(), b.float(), alpha.float()
    if not (torch.isfinite(a).all() and torch.isfinite(b).all() and torch.isfinite(alpha).all()):
        raise LoraError(f"{path.name} holds infinite or undefined numbers at {module}: train or download it again.")
    return a, b, float(alpha)


def _parts(module: str, native: bool, value: tuple[Tensor, Tensor, float]) -> LoraWeights:
    """A layer's LoRA under diffusers' names; a fused native layer is several of them."""
    a, b, alpha = value
    if not native:
        return {module: value}
    if module.endswith(f".{QKV_OF_LINEAR1}"):
        stem = module.removesuffix("_qkv")
        whole = diffusers_parts(stem, 7 * (len(b) // 3), len(b) // 3)
        rows = {part: pieces for part, pieces in whole.items() if not part.endswith("proj_mlp")}
    else:
        rows = diffusers_parts(module, len(b), a.shape[1])
    parts: LoraWeights = {}
    for part, pieces in rows.items():
        own = torch.cat([b[piece] for piece in pieces])
        # trainers that fuse separate LoRAs of q, k and v leave each part the others' ranks, filled with zeros
        used = own.any(0) if len(rows) > 1 else torch.ones(len(a), dtype=torch.bool)
        if not used.any():
            used[0] = True
        kept = int(used.sum())
        parts[part] = (a[used], own[:, used], alpha * kept / len(a))
    return parts


def _check_widths(path: Path, weights: LoraWeights) -> None:
    """LoraError unless all widths are those of one Flux, of whatever hidden size."""
    hidden: float | None = None
    for module, (a, b, _) in weights.items():
        for size, multiple in zip((a.shape[1], b.shape[0]), linear_widths(module), strict=True):
            if multiple is None:
                continue
            hidden = size / multiple if hidden is None else hidden
            if size != hidden * multiple:
                raise LoraError(
                    f"{path.name} fits no Flux: {module} has {a.shape[1]} inputs and {b.shape[0]} outputs beside a "
                    f"hidden size of {hidden:g}; choose a LoRA that was made for Flux."
                )


def _opened(path: Path):
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise LoraError(f"The LoRA {path.name} is missing: refresh the list and choose another one.") from None
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        if path.is_dir():
            raise LoraError(f"{path.name} is a folder: choose a .safetensors file.") from None
        if _is_pickled(path):
            raise LoraError(
                f"{path.name} is a pickled file, which can run code when it is loaded, so it was not: choose a "
                ".safetensors file."
            ) from None
        raise LoraError(f"{path.name} is not a readable safetensors file: train or download it again.") from error


def _is_pickled(path: Path) -> bool:
    """Whether a file that is no safetensors file looks like torch.save's: a zip archive or a pickle."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        return False
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))
