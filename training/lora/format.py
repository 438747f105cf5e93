"""The LoRA file: what ComfyUI's Load LoRA and diffusers' load_lora_weights both read, with our metadata."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import LoraError

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
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise LoraError(
                f"The LoRA of {module} holds infinite or undefined numbers: train again with a lower learning rate."
            )
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a.detach().to("cpu", dtype).contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b.detach().to("cpu", dtype).contiguous()
        tensors[f"{PREFIX}{module}.alpha"] = torch.tensor(float(alpha))
    data, temporary = _serialized(tensors, {"format": "pt", **metadata}), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # in the same folder, so that the replacement is one rename; the suffix keeps it out of the host's LoRA list
        handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
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


def _serialized(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """The bytes of a safetensors file; the library leaves the order of metadata to chance, here it is sorted, so that
    the same training gives the same file."""
    data = save(tensors, metadata=metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[end:]


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a LoRA file ({} if it has none), without reading its weights."""
    with _opened(Path(path)) as file:
        return dict(file.metadata() or {})


def read_lora(path: str | Path) -> tuple[LoraWeights, dict[str, str]]:
    """Weights (fp32, CPU) and metadata of a Flux LoRA in diffusers' keys; LoraError if it is anything else.

    A missing alpha means rank (scale 1), as ComfyUI and diffusers read it.
    """
    path = Path(path)
    with _opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        metadata = dict(file.metadata() or {})
    weights: LoraWeights = {}
    used = set()
    for key in tensors:
        if not (key.startswith(PREFIX) and key.endswith(".lora_A.weight")):
            continue
        stem = key.removesuffix(".lora_A.weight")
        names = (key, f"{stem}.lora_B.weight", f"{stem}.alpha")
        if names[1] not in tensors:
            raise LoraError(f"{path.name} lacks {names[1]}: train or download it again.")
        a, b = tensors[names[0]].float(), tensors[names[1]].float()
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise LoraError(f"{path.name} has matrices that do not multiply at {stem}: train or download it again.")
        weights[stem.removeprefix(PREFIX)] = (
            a,
            b,
            float(tensors[names[2]]) if names[2] in tensors else float(a.shape[0]),
        )
        used.update(names)
    foreign = sorted(set(tensors) - used)
    if not weights or foreign:
        raise LoraError(
            f"{path.name} is not a Flux LoRA in diffusers' layout{f' ({foreign[0]})' if foreign else ''}: "
            "choose another file."
        )
    return weights, metadata


def _opened(path: Path):
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise LoraError(f"The LoRA {path.name} is missing: refresh the list and choose another one.") from None
    except (SafetensorError, OSError) as error:
        raise LoraError(f"{path.name} is not a readable safetensors file: train or download it again.") from error
