"""A Flux's parts inside safetensors files, in every layout in which they are published: found by their keys, never by a
file's name, and read one tensor at a time, quantised weights multiplied by their scales."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SourceError

if TYPE_CHECKING:  # jobs and nodes look at headers without waiting for torch
    import torch
    from torch import Tensor

FILE_KINDS = {
    "transformer": "Flux transformer",
    "clip_l": "CLIP-L text encoder",
    "t5": "T5 text encoder",
    "vae": "Flux VAE",
}

# What stands before the keys of each kind: nothing in a file of its own, the host's names in all-in-one checkpoints.
_PREFIXES = {
    "transformer": ("", "model.diffusion_model.", "diffusion_model."),
    "clip_l": ("", "text_encoders.clip_l.transformer.", "clip_l.transformer."),
    "t5": ("", "text_encoders.t5xxl.transformer.", "t5xxl.transformer."),
    "vae": ("", "vae.", "first_stage_model."),
}
NATIVE_MARKER = "double_blocks.0.img_attn.qkv.weight"
# Keys that only this kind has, one for each of its layouts.
_MARKERS = {
    "transformer": (NATIVE_MARKER, "transformer_blocks.0.attn.add_q_proj.weight"),
    "clip_l": (
        "text_model.encoder.layers.0.self_attn.q_proj.weight",
        "encoder.layers.0.self_attn.q_proj.weight",  # as transformers writes it since 5.6
        "transformer.resblocks.0.attn.in_proj_weight",  # OpenAI's and OpenCLIP's
    ),
    "t5": ("encoder.block.0.layer.0.SelfAttention.q.weight",),
    "vae": ("decoder.conv_in.weight",),
}
# What a kind's keys begin with after its prefix, where files hold other things besides: image towers, T5's decoder.
_BEGINNINGS = {
    "t5": ("encoder.block.", "encoder.final_layer_norm.", "encoder.embed_tokens.", "shared."),
    "vae": ("encoder.", "decoder.", "quant_conv.", "post_quant_conv."),
}
# OpenCLIP's names of what transformers calls otherwise; its attention stacks query, key and value
_OPEN_CLIP = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_OPEN_CLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}

# safetensors' name of a number format → torch's
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "U8": "uint8",
}
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
# What quantised files hold beside a layer's weight. The host's names have changed with time.
_SCALES = (".scale_weight", ".weight_scale")
_OTHERS = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")  # not needed to have the weights back
QUANTISED_KEYS = (*_SCALES, *_OTHERS)  # endings of keys that only quantised files have
# formats of the host whose weights are number times scale → how the numbers are stored
_PRODUCTS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int8_tensorwise": "I8", "int8_blockwise": "I8"}
HOST_FORMATS = "_quantization_metadata"  # JSON in a file's metadata: the format of every quantised layer

# How files begin that are mistaken for safetensors ones, and what to do.
_PICKLE = "is a pickle, which can run programs when it is read: choose a .safetensors version of the model."
_FOREIGN = {
    b"PK\x03\x04": _PICKLE,
    b"\x80\x02": _PICKLE,
    b"GGUF": "is a GGUF file, which cannot be trained: choose a bf16, fp16 or fp8 .safetensors version of the model.",
    b"version ": "is a Git LFS pointer and not the weights: download the file itself.",
    b"<": "is a web page and not the weights: download it again, signed in where the site asks for it.",
}


def torch_dtype(code: str) -> torch.dtype:
    """torch's dtype for safetensors' name of one; KeyError for those that no weight here has."""
    import torch

    return getattr(torch, _DTYPES[code])


def read_header(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Tensor shapes of a safetensors file by name, from its header; SourceError if it is missing, cut short or not
    one."""
    header, _ = read_whole_header(path)
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def read_whole_header(path: str | Path) -> tuple[dict[str, Any], int]:
    """(the header of a safetensors file: name → dtype, shape, data_offsets, and "__metadata__"; where its tensors
    start). Raises SourceError as `read_header`."""
    path, beginning = Path(path), b""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            beginning = file.read(8)
            length = int.from_bytes(beginning, "little")
            if not 2 <= length <= min(size - 8, 100_000_000):
                raise ValueError
            header = json.loads(file.read(length))
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        if not all(isinstance(entry["dtype"], str) and isinstance(entry["shape"], list) for entry in entries):
            raise ValueError
        end = max((entry["data_offsets"][1] for entry in entries), default=0)
    except FileNotFoundError:
        raise SourceError(f"The file {path.name} is missing: put it back or choose another one.") from None
    except OSError as error:
        raise SourceError(f"The file {path.name} cannot be read ({error.strerror}): check its permissions.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        why = next((why for mark, why in _FOREIGN.items() if beginning.startswith(mark)), "")
        raise SourceError(
            f"The file {path.name} {why or 'is not a safetensors file: choose a .safetensors file.'}"
        ) from None
    if 8 + length + end != size:
        raise SourceError(
            f"The file {path.name} is incomplete ({size} of {8 + length + end} bytes): download it again."
        )
    return header, 8 + length


def native_prefix(keys: Collection[str]) -> str:
    """The prefix of a native (Black Forest Labs layout) transformer's keys; "" when there is none."""
    return next((prefix for prefix in _PREFIXES["transformer"] if prefix + NATIVE_MARKER in keys), "")


def kinds_in(keys: Collection[str]) -> dict[str, str]:
    """Which of FILE_KINDS a file with these keys holds, each with the prefix of its keys: several in an all-in-one
    checkpoint, none in a file of something else."""
    found = {
        kind: next((p for p in prefixes for marker in _MARKERS[kind] if p + marker in keys), None)
        for kind, prefixes in _PREFIXES.items()
    }
    return {kind: prefix for kind, prefix in found.items() if prefix is not None}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, or some of its rows: safetensors' name of its number format, shape, first and last byte."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def rows(self, first: int, last: int) -> Stored:
        """Rows of it (along dimension 0), which are next to each other in the file."""
        row = (self.end - self.start) // self.shape[0]
        return replace(
            self, shape=(last - first, *self.shape[1:]), start=self.start + first * row, end=self.start + last * row
        )

    def read(self, file: BufferedIOBase, memory: Tensor) -> Tensor:
        """The tensor, in `memory`, at least as many bytes of uint8: what is read must not take memory besides what it
        becomes, as a mapped file would, or pieces of all sizes that an allocator is slow to give back."""
        buffer = memory[: self.end - self.start]
        file.seek(self.start)
        if file.readinto(buffer.numpy().data) != len(buffer):
            raise OSError("the file ends too early")
        return buffer.view(torch_dtype(self.dtype)).view(self.shape)


@dataclass(frozen=True)
class Weights:
    """The weights of one part of a Flux in a file, under names without prefix. For CLIP and T5 those are transformers'
    names ("text_model.…" for CLIP); transformers and VAEs keep the names of their layout.

    scales: of quantised weights, under the weight's name: a number for all, for each row, or for each block of it.
    """

    path: Path
    tensors: dict[str, Stored]
    scales: dict[str, Stored]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: stored.shape for name, stored in self.tensors.items()}

    def read(self, names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) one by one, in the order of the file, in their stored dtype; what was quantised in fp32.

        The next one takes the memory of the one before: copy what is to be kept.
        """
        import torch

        selected = {name: stored for name, stored in self.tensors.items() if names is None or name in names}
        memory = torch.empty(
            max((stored.end - stored.start for stored in selected.values()), default=0), dtype=torch.uint8
        )
        with self.path.open("rb") as file:
            for name, stored in sorted(selected.items(), key=lambda item: item[1].start):
                tensor, scale = stored.read(file, memory), self.scales.get(name)
                if scale is not None:
                    tensor = rescaled(tensor, scale.read(file, torch.empty(scale.end - scale.start, dtype=torch.uint8)))
                yield name, tensor


def rescaled(weight: Tensor, scale: Tensor) -> Tensor:
    """weight × scale in fp32. scale: one number, one for each row, or one for each block of rows and columns.

    Raises ValueError where the scale fits none of these.
    """
    scale = scale.float()
    if scale.ndim < 2:
        scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
    if scale.ndim != weight.ndim or any(n % m for n, m in zip(weight.shape, scale.shape, strict=True)):
        raise ValueError(f"a scale of shape {tuple(scale.shape)} for a weight of shape {tuple(weight.shape)}")
    for dimension, (n, m) in enumerate(zip(weight.shape, scale.shape, strict=True)):
        if 1 < m < n:
            scale = scale.repeat_interleave(n // m, dimension)
    return weight.float() * scale


def open_weights(path: str | Path, kind: str | None = None) -> Weights:
    """The weights of `kind`, one of FILE_KINDS, in a file that may hold more than that; None: all that is in a shard
    of a model folder. SourceError if the file does not hold it, or in a form that cannot be read."""
    path = Path(path)
    header, origin = read_whole_header(path)
    metadata = header.pop("__metadata__", None) or {}
    kinds = kinds_in(header)
    if kind is not None and kind not in kinds:
        what = " and ".join(f"a {FILE_KINDS[found]}" for found in kinds) or "something else"
        raise SourceError(f"{path.name} is {what}: choose a {FILE_KINDS[kind]} for {kind}.")
    prefix = "" if kind is None else kinds[kind]
    strangers = () if prefix or kind is None else tuple(p for each in _PREFIXES.values() for p in each if p)
    begins = _BEGINNINGS.get(kind or "", ("",))
    tensors, scales, formats = {}, {}, _formats(metadata.get(HOST_FORMATS), prefix)
    for key, entry in header.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name.startswith(strangers):
            continue
        first, last = entry["data_offsets"]
        stored = Stored(entry["dtype"], tuple(entry["shape"]), origin + first, origin + last)
        if name.endswith(".comfy_quant"):
            with path.open("rb") as file:
                file.seek(stored.start)
                formats[name.removesuffix(".comfy_quant")] = _json_object(file.read(stored.end - stored.start))
        elif name.endswith(_SCALES):
            scales[name.rpartition(".")[0] + ".weight"] = stored
        elif not name.endswith(_OTHERS) and name.startswith(begins):
            tensors[name] = stored
    for name, stored in tensors.items():
        tensors[name] = _readable(path, name, stored, scales.get(name), formats.get(name.removesuffix(".weight"), {}))
    if kind == "clip_l":
        tensors = dict(pair for name, stored in tensors.items() for pair in _clip_names(name, stored))
    return Weights(path, tensors, {name: scale for name, scale in scales.items() if name in tensors})


def _json_object(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _formats(text: str | None, prefix: str) -> dict[str, dict[str, Any]]:
    """Layer → the host's description of its format, from a file's metadata; names come with and without prefix."""
    layers = _json_object(text or "{}").get("layers")
    if not isinstance(layers, dict):
        return {}
    return {name.removeprefix(prefix): layer for name, layer in layers.items() if isinstance(layer, dict)}


def _readable(path: Path, name: str, stored: Stored, scale: Stored | None, layer: Mapping[str, Any]) -> Stored:
    """The tensor with the dtype that its numbers are of; SourceError where they are not a weight or weight over scale.

    Weights of 4 bits are packed in bytes, and their scales are in an order of their own.
    """
    form = layer.get("format")
    if form in _PRODUCTS and not layer.get("convrot") and stored.dtype in (_PRODUCTS[form], "U8"):
        stored = replace(stored, dtype=_PRODUCTS[form])  # fp8 is also written as plain bytes
    elif form is not None:
        form = form if form not in _PRODUCTS else f"{form}, rotated" if layer.get("convrot") else stored.dtype
        raise _unreadable(path, name, form)
    if stored.dtype in FLOATS and (scale is None or scale.dtype in FLOATS):
        return stored
    if stored.dtype == "I8" and scale is not None and scale.dtype in FLOATS:
        return stored
    if stored.dtype.startswith("I") and name.endswith("position_ids"):
        return stored  # no weight, and left out by those who read
    raise _unreadable(path, name, stored.dtype if scale is None else f"{stored.dtype} scaled by {scale.dtype}")


def _unreadable(path: Path, name: str, form: object) -> SourceError:
    return SourceError(
        f"{path.name} is quantised in a way that cannot be trained ({name} is {form}): "
        "choose its bf16, fp16 or fp8 version."
    )


def _clip_names(name: str, stored: Stored) -> Iterator[tuple[str, Stored]]:
    """A tensor of CLIP's text encoder under transformers' names; nothing for what belongs to something else."""
    if name.endswith("position_ids"):
        return
    if name.startswith("text_model."):
        yield name, stored
    elif name.startswith(("encoder.layers.", "embeddings.", "final_layer_norm.")):
        yield f"text_model.{name}", stored
    elif name in _OPEN_CLIP:
        yield f"text_model.{_OPEN_CLIP[name]}", stored
    elif name.startswith("transformer.resblocks."):
        index, _, inner = name.removeprefix("transformer.resblocks.").partition(".")
        layer = f"text_model.encoder.layers.{index}"
        module, _, end = inner.rpartition(".")
        if inner.startswith("attn.in_proj_"):
            width = stored.shape[0] // 3
            for place, part in enumerate(("q_proj", "k_proj", "v_proj")):
                end = inner.removeprefix("attn.in_proj_")
                yield f"{layer}.self_attn.{part}.{end}", stored.rows(place * width, (place + 1) * width)
        elif module in _OPEN_CLIP_BLOCK:
            yield f"{layer}.{_OPEN_CLIP_BLOCK[module]}.{end}", stored
