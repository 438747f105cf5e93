"""Concept inputs: what flows into a LoRA's layers when its concept is asked for. Fusing LoRAs (`merge`) needs it.

They lie beside the LoRA as `<name>.inputs.safetensors` (inside it the host would warn about keys it does not know): for
every place where layers read the same activations x, `<place>.concept` and `<place>.keep`, matrices F [columns, inputs]
with Fᵀ F ≈ E[x xᵀ] over the concept's prompts and over preservation prompts, strongest directions first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import LoraError
from ..files import replacing

INPUTS_SUFFIX = ".inputs.safetensors"
KEY_FORMAT = "erase_anything.inputs"  # version of this layout
FORMAT = "1"
COLUMNS = {"concept": 16, "keep": 32}  # kept directions at most; on Flux.1-dev 19 places of them are 5.6 MB
ENERGY = 1e-6  # share of the activations' energy below which further directions are not worth their place

# layers of one block that read the same activations; single blocks: in the second line
_SHARED = re.compile(
    r"(?P<block>transformer_blocks\.\d+\.attn\.)(?:(?P<text>add_[qkv]_proj)|to_[qkv])"
    r"|(?P<single>single_transformer_blocks\.\d+\.)(?:attn\.to_[qkv]|proj_mlp)"
)


def input_site(module: str) -> str:
    """The name under which a layer's inputs are stored: that of the first of the layers that read the same ones."""
    match = _SHARED.fullmatch(module)
    if not match:
        return module
    if match["single"]:
        return f"{match['single']}attn.to_q"
    return match["block"] + ("add_q_proj" if match["text"] else "to_q")


@dataclass(frozen=True)
class ConceptInputs:
    """concept, keep: place (see `input_site`) → F [columns, inputs]; metadata: texts."""

    concept: dict[str, Tensor]
    keep: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def low_rank_factor(moment: Tensor, columns: int) -> Tensor:
    """F [at most `columns`, inputs] with Fᵀ F the best approximation of a second moment [inputs, inputs]."""
    values, vectors = torch.linalg.eigh(moment.double())
    values, vectors = values.flip(0)[:columns].clamp_min(0), vectors.flip(1)[:, :columns]
    rank = max(1, int((values > ENERGY * values.sum()).sum()))
    return (vectors[:, :rank] * values[:rank].sqrt()).T.contiguous()


def inputs_path(lora: str | Path) -> Path:
    """Where the concept inputs of a LoRA file are, if there are any."""
    return Path(lora).with_suffix(INPUTS_SUFFIX)


def write_inputs(path: str | Path, inputs: ConceptInputs) -> None:
    """Write concept inputs (bf16) atomically. Raises LoraError."""
    path = Path(path)
    tensors = {f"{place}.concept": factor for place, factor in inputs.concept.items()}
    tensors |= {f"{place}.keep": factor for place, factor in inputs.keep.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()}
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt", **inputs.metadata, KEY_FORMAT: FORMAT})
    except (OSError, SafetensorError) as error:
        raise LoraError(f"{path.name} cannot be written: free some space or check permissions ({error}).") from error


def read_inputs(path: str | Path) -> ConceptInputs | None:
    """The concept inputs in a file, as stored; None if there is no such file, LoraError if it holds something else."""
    path = Path(path)
    if not path.is_file():
        return None
    found: dict[str, dict[str, Tensor]] = {"concept": {}, "keep": {}}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                place, _, kind = name.rpartition(".")
                found[kind][place] = file.get_tensor(name)
    except Exception as error:  # also whatever the library raises for types that torch lacks
        raise _broken(path) from error
    if metadata.get(KEY_FORMAT) != FORMAT or found["concept"].keys() != found["keep"].keys():
        raise _broken(path)
    for factors in found.values():
        for factor in factors.values():
            if factor.ndim != 2 or not factor.is_floating_point() or not torch.isfinite(factor.float()).all():
                raise _broken(path)
    return ConceptInputs(found["concept"], found["keep"], metadata)


def _broken(path: Path) -> LoraError:
    return LoraError(f"{path.name} holds no concept inputs: delete it, or make it again.")


def check_inputs(name: str, shapes: Mapping[str, int], inputs: ConceptInputs) -> None:
    """LoraError unless stored inputs are as wide as the layers (module → inputs) of the LoRA called `name`."""
    for module, width in shapes.items():
        for factors in (inputs.concept, inputs.keep):
            factor = factors.get(input_site(module))
            if factor is not None and factor.shape[1] != width:
                raise LoraError(f"The concept inputs of {name} are of another Flux: make them again.")
