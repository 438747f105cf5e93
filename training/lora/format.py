"""The LoRA file: what ComfyUI's Load LoRA and diffusers' load_lora_weights both read, with our metadata.

Written in one layout, read in every dialect of `dialects`.
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import LoraError
from ..files import write_atomically
from ..models.native_layout import diffusers_parts, linear_widths
from .dialects import (
    QKV_OF_LINEAR1,
    UNREADABLE,
    LoraKey,
    embedding_word,
    is_change,
    is_text_encoder,
    parse_key,
    whole_layer,
)
from .factors import Factors, Unfactorable, factors_of
from .other_bases import other_base
from .scales import AdapterConfig, read_config

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
        KEY_CONCEPT: json.dumps(concept, sort_keys=True),
        KEY_METHOD: method,
        KEY_BASE: base,
        KEY_CONFIG: json.dumps(config, sort_keys=True),
        KEY_METRICS: json.dumps(metrics, sort_keys=True),
        KEY_VERSION: version,
    }


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
        # a copy, since the parts of a fused layer share their A, which the library refuses to write
        a, b = (matrix.detach().to("cpu", dtype, copy=True).contiguous() for matrix in (a, b))
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise LoraError(
                f"The LoRA of {module} holds infinite or undefined numbers: train again with a lower learning rate."
            )
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b
        tensors[f"{PREFIX}{module}.alpha"] = torch.tensor(float(alpha))
    parts = _serialized(tensors, {"format": "pt", **metadata})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, *parts)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        why = "the disk is full, free some space" if full else f"check the folder's permissions ({error.strerror})"
        raise LoraError(f"The LoRA {path.name} cannot be written: {why}.") from error


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
    host_format: whether ComfyUI's Load LoRA knows every key, and alpha is where it looks; tensors, parameters (of the
    matrices), dtypes (of the matrices): what is in the file; notes: sentences about what was left out, converted, or
    read from elsewhere.
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

    Fused projections are split into diffusers' own, each with a copy of A. LoHa, LoKr and whole differences become
    LoRAs (see `factors`). alpha is that of the tensors, else of PEFT's settings (see `scales`), else the rank (scale
    1), as ComfyUI and diffusers read it. What no LoRA of a transformer can hold is left out, with a note: changes of
    text encoders, biases and norms, and embeddings. Pickled files are never loaded, since unpickling runs code.
    """
    path = Path(path)
    with _opened(path) as file:
        names, metadata = list(file.keys()), dict(file.metadata() or {})
        keys = _understood(path, names, file)
        try:
            tensors = {name: file.get_tensor(name) for name in keys}
        except Exception as error:  # whatever the library raises for types that torch lacks
            raise LoraError(f"{path.name} holds numbers that cannot be read: download it again.") from error
    matrices = [tensors[name] for name, key in keys.items() if key.role not in (*_NUMBERS, *_LEFT_OUT)]
    layers: dict[tuple[str, bool], dict[str, Tensor]] = {}
    for name, key in keys.items():
        layer = layers.setdefault((key.module, key.native), {})
        if key.role in layer:
            raise LoraError(f"{path.name} has two LoRAs of {key.module}: choose a file that was not mixed of two.")
        # integers stay what they are, to be refused, but for an alpha
        floating = key.role in _NUMBERS or tensors[name].is_floating_point()
        layer[key.role] = tensors[name].float() if floating else tensors[name]
    notes = _left_out(path, names, keys, layers)
    if not layers:
        raise LoraError(f"{path.name} changes no weights of linear layers, only biases or norms: choose another file.")
    weights, more, rescaled = _weights(path, layers, read_config(path, metadata))
    _check_widths(path, weights, keys, tensors)
    dialects = sorted({key.dialect for key in keys.values()})
    kinds = {str(matrix.dtype).removeprefix("torch.") for matrix in matrices}
    return LoraFile(
        weights,
        metadata,
        dialects[0] if len(dialects) == 1 else "mixed",
        host_format=all(key.host for key in keys.values()) and not rescaled,
        tensors=len(names),
        parameters=sum(matrix.numel() for matrix in matrices),
        dtypes=tuple(sorted(kinds)),
        notes=(*notes, *more),
    )


MUCH = 0.1  # relative error of a change above which another loader is recommended
_NUMBERS = ("alpha", "scalar")
_LEFT_OUT = ("bias", "set", "reshape")  # of a layer, what is no change of a weight


def _understood(path: Path, names: Iterable[str], file: safe_open) -> dict[str, LoraKey]:
    """The names of the transformer's tensors with what they are for; LoraError for any that no Flux LoRA has."""
    keys, foreign, encoders = {}, [], False
    for name in names:
        if is_text_encoder(name) or embedding_word(name) is not None:
            encoders = True
            continue
        key = parse_key(name)
        if key is None:
            foreign.append(name)
        else:
            keys[name] = key
    for end, kind in UNREADABLE:
        if any(match.end() == len(name) for name in foreign if (match := end.search(name))):
            raise LoraError(f"{path.name} is {kind}: choose a LoRA, a LoHa or a LoKr.")
    whole = [layer for name in foreign if (layer := whole_layer(name))]
    if whole and all(key.role in _LEFT_OUT for key in keys.values()):
        raise LoraError(f"{path.name} is a whole model and no LoRA: put it into models/diffusion_models.")
    if whole and len(whole) == len(foreign):
        raise LoraError(
            f"{path.name} holds whole layers beside its LoRA ({min(whole)}, …), which would replace the model's own: "
            "train again without modules_to_save."
        )
    if foreign:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names if is_change(name)}
        base = other_base(shapes)
        if base is not None:
            raise _foreign(path, base)
        raise LoraError(f"{path.name} is not a Flux LoRA (it holds {min(foreign)[:100]!r}): choose another file.")
    if any(key.role == "reshape" or (key.role == "set" and key.norm) for key in keys.values()):
        raise LoraError(
            f"{path.name} is a control LoRA, which gives the model further inputs for an image and sets its norms: "
            "load it with ComfyUI's own Load LoRA, and choose another file here."
        )
    if not keys and encoders:
        raise LoraError(
            f"{path.name} is not a Flux LoRA that erases: it changes text encoders or embeddings only, which this pack "
            "leaves as they are; load it with ComfyUI's own nodes."
        )
    if not keys:
        raise LoraError(f"{path.name} is not a Flux LoRA: choose another file.")
    return keys


def _foreign(path: Path, base: str) -> LoraError:
    return LoraError(f"{path.name} is a LoRA for {base}, not for FLUX.1: choose one that was made for FLUX.1.")


def _left_out(
    path: Path, names: Sequence[str], keys: Mapping[str, LoraKey], layers: dict[tuple[str, bool], dict[str, Tensor]]
) -> list[str]:
    """Removes from `layers` what is left out; returns sentences about it, none about tensors that are all zero."""
    notes = []
    text = [name for name in names if is_text_encoder(name)]
    if text:
        notes.append(f"{path.name}: {len(text)} tensors for the text encoders were left out ({text[0]}, …).")
    words = sorted({word for name in names if (word := embedding_word(name)) is not None})
    if words:
        notes.append(
            f"{path.name}: the embeddings of {', '.join(map(repr, words[:5]))} were left out: save them as files of "
            "their own in models/embeddings."
        )
    norms = {key.module for key in keys.values() if key.norm}
    counts = {"biases": 0, "norms": 0}
    for (module, native), layer in list(layers.items()):
        extra = {role: layer.pop(role) for role in _LEFT_OUT if role in layer}
        if module in norms:
            extra.update(layers.pop((module, native)))
        elif extra and layer.keys() <= set(_NUMBERS):
            del layers[module, native]
        if any(value.any() for role, value in extra.items() if role not in _NUMBERS):
            counts["norms" if module in norms else "biases"] += 1
    for what, count in counts.items():
        if count:
            notes.append(
                f"{path.name}: its changes of {count} {what} were left out, since a LoRA holds changes of weights "
                "only: what it paints differs from what its trainer meant."
            )
    return notes


def _weights(
    path: Path, layers: Mapping[tuple[str, bool], Mapping[str, Tensor]], config: AdapterConfig | None
) -> tuple[LoraWeights, list[str], bool]:
    """Every layer's LoRA under diffusers' names, sentences about how they were made, whether `config` gave alpha."""
    weights: LoraWeights = {}
    made: dict[str, list[Factors]] = {}
    found = {place: _checked(path, place[0], layer) for place, layer in layers.items()}
    if config is not None:
        ranks = [(module, factors.rank) for (module, _), factors in found.items() if factors.kind in ("", "LoHa")]
        odd = next(((module, rank) for module, rank in ranks if rank != config.rank_of(module)), None)
    used = config is not None and odd is None
    scaled = []
    for (module, native), factors in found.items():
        value, by_config = _scaled(module, factors, layers[module, native], config if used else None)
        if by_config:
            scaled.append(module)
        if factors.kind:
            made.setdefault(factors.kind, []).append(factors)
        for part, piece in _parts(module, native, value).items():
            if part in weights:
                raise LoraError(f"{path.name} has two LoRAs of {part}: choose a file that was not mixed of two.")
            weights[part] = piece
    notes = [_conversion_note(path, kind, each) for kind, each in made.items()]
    if config is not None and odd is not None:
        notes.append(
            f"{path.name}: {config.where} says rank {config.rank_of(odd[0])} where {odd[0]} has {odd[1]}, so it is of "
            "another LoRA and its alpha was not used."
        )
    elif config is not None and scaled:
        rule = ", divided by the rank's square root (rsLoRA)" if config.rslora else ""
        notes.append(f"{path.name}: alpha was read from {config.where}: {config.alpha:g} at rank {config.rank}{rule}.")
    return weights, notes, bool(scaled)


def _conversion_note(path: Path, kind: str, made: Sequence[Factors]) -> str:
    """What became of layers that were no LoRA."""
    rank, total = max(len(each.a) for each in made), sum(each.total for each in made)
    error = math.sqrt(sum(each.lost for each in made) / total) if total else 0.0
    exact = "exactly" if error < 1e-6 else f"which leaves out {error:.2g} of their change (relative Frobenius error)"
    if error > MUCH:
        exact += "; ComfyUI's own Load LoRA applies such files whole where it knows their names"
    many = f"{len(made)} {kind} layer{'s' if len(made) > 1 else ''}"
    return f"{path.name}: {many} became a LoRA of rank up to {rank}, {exact}."


def _checked(path: Path, module: str, layer: Mapping[str, Tensor]) -> Factors:
    """The two matrices of one layer; LoraError if one lacks, does not multiply or is no number."""
    for role, value in layer.items():
        if (role in _NUMBERS and value.numel() != 1) or not value.is_floating_point():
            raise LoraError(f"{path.name} has an alpha or matrices of a wrong kind at {module}: download it again.")
        if not torch.isfinite(value).all():
            raise LoraError(f"{path.name} holds infinite or undefined numbers at {module}: train or download it again.")
    try:
        factors = factors_of(layer)
    except Unfactorable as reason:
        raise LoraError(f"{path.name} {reason} at {module}: train or download it again.") from None
    if factors.kind and not (torch.isfinite(factors.a).all() and torch.isfinite(factors.b).all()):
        raise LoraError(f"{path.name} holds numbers at {module} whose products are too large: train it again.")
    return factors


def _scaled(
    module: str, factors: Factors, layer: Mapping[str, Tensor], config: AdapterConfig | None
) -> tuple[tuple[Tensor, Tensor, float], bool]:
    """(A, B, alpha) of one layer in fp32, and whether its alpha is from `config`."""
    size = len(factors.a)
    scale, by_config = 1.0, False
    if "alpha" in layer and factors.kind != "whole difference":
        scale = float(layer["alpha"]) / factors.rank if factors.rank else 1.0
    elif config is not None and factors.kind != "whole difference":
        scale, by_config = config.scale_of(module), True
    if "scalar" in layer:
        scale *= float(layer["scalar"])
    return (factors.a, factors.b, scale * size), by_config


def _parts(module: str, native: bool, value: tuple[Tensor, Tensor, float]) -> LoraWeights:
    """A layer's LoRA under diffusers' names; a fused native layer is several of them."""
    a, b, alpha = value
    if not native:
        return {module: value}
    if module.endswith(f".{QKV_OF_LINEAR1}"):
        rows = diffusers_parts(module.removesuffix("_qkv"), 7 * (len(b) // 3), len(b) // 3)
    else:
        rows = diffusers_parts(module, len(b), a.shape[1])
    assert rows is not None, "names that no FLUX.1 has were refused before"
    if module.endswith(f".{QKV_OF_LINEAR1}"):
        rows = {part: pieces for part, pieces in rows.items() if not part.endswith("proj_mlp")}
    parts: LoraWeights = {}
    for part, pieces in rows.items():
        own = torch.cat([b[piece] for piece in pieces])
        # trainers that fuse separate LoRAs of q, k and v leave each part the others' ranks, filled with zeros
        used = own.any(0) if len(rows) > 1 else torch.ones(len(a), dtype=torch.bool)
        if used.all():
            parts[part] = (a, own, alpha)
            continue
        if not used.any():
            used[0] = True
        rank = int(used.sum())
        parts[part] = (a[used], own[:, used], alpha * rank / len(a))
    return parts


def _check_widths(path: Path, weights: LoraWeights, keys: Mapping[str, LoraKey], tensors: Mapping[str, Tensor]) -> None:
    """LoraError unless all widths are those of one FLUX.1, of whatever hidden size."""
    base = other_base({name: tuple(tensors[name].shape) for name in keys})
    if base is not None:
        raise _foreign(path, base)
    hidden: float | None = None
    for module, (a, b, _) in weights.items():
        widths = linear_widths(module)
        assert widths is not None, "names that no FLUX.1 has were refused before"
        for size, multiple in zip((a.shape[1], b.shape[0]), widths, strict=True):
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
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would be waited for without end
            raise LoraError(f"{path.name} is no regular file: choose a .safetensors file.")
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
