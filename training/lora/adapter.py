"""The LoRA on the transformer (peft): add, switch off, scale, read and write its weights."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from ..errors import ConfigError, LoraError
from .format import LoraWeights

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

ADAPTER = "erasure"


def target_modules(
    transformer: FluxTransformer2DModel, targets: Sequence[str], blocks: Sequence[int] | None = None
) -> list[str]:
    """Full names of the linear layers whose names end in one of `targets` ("attn.add_q_proj"), in double and single
    blocks.

    blocks: indices of double blocks (None: all blocks); single blocks count on from the double ones.
    """
    double = len(transformer.transformer_blocks)
    found = []
    for name, module in transformer.named_modules():
        stream, _, rest = name.partition(".")
        if stream not in ("transformer_blocks", "single_transformer_blocks") or not rest:
            continue
        index = int(rest.split(".")[0]) + (double if stream == "single_transformer_blocks" else 0)
        linear = isinstance(module, torch.nn.Linear | LoraLayer)
        if linear and (blocks is None or index in blocks) and any(name.endswith("." + target) for target in targets):
            found.append(name)
    if not found:
        raise ConfigError(
            f"No layer of this Flux is named {' or '.join(targets)}: choose other LoRA targets or blocks."
        )
    return found


def add_adapter(
    transformer: FluxTransformer2DModel,
    targets: Sequence[str],
    rank: int,
    alpha: float,
    seed: int,
    blocks: Sequence[int] | None = None,
) -> list[torch.nn.Parameter]:
    """Put a fresh LoRA (B = 0, so it changes nothing yet; A drawn from `seed`) on target_modules() and return its
    parameters.

    The parameters are fp32 and trainable, whatever the base's dtype; the base stays frozen.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT says int and takes any number
            target_modules=target_modules(transformer, targets, blocks),
        )
        _inject(transformer, config)
    return adapter_parameters(transformer)


def load_adapter(transformer: FluxTransformer2DModel, weights: LoraWeights) -> None:
    """Put a LoRA with these weights on the transformer (ranks and alphas may differ); LoraError if it does not fit."""
    modules = dict(transformer.named_modules())
    for name, (a, b, _) in weights.items():
        layer = modules.get(name)
        if not isinstance(layer, torch.nn.Linear) or (layer.in_features, layer.out_features) != (
            a.shape[1],
            b.shape[0],
        ):
            raise LoraError(
                f"The LoRA was made for another Flux (its {name} does not fit): choose the model it was trained on."
            )
    # peft takes names as ends of names, and a single block's "proj_out" ends as the model's own does: ^ means all of it
    exact = {name: re.escape(name) for name in weights}
    _inject(
        transformer,
        LoraConfig(
            target_modules="|".join(exact.values()),
            rank_pattern={f"^{exact[name]}": a.shape[0] for name, (a, _, _) in weights.items()},
            alpha_pattern={f"^{exact[name]}": alpha for name, (_, _, alpha) in weights.items()},
        ),
    )
    set_adapter_weights(transformer, weights)


def remove_adapter(transformer: FluxTransformer2DModel) -> None:
    """Take the LoRA off again: the transformer is its base, and another LoRA can be loaded."""
    if _layers(transformer):
        transformer.unload_lora()
        transformer.requires_grad_(False)


def _inject(transformer: FluxTransformer2DModel, config: LoraConfig) -> None:
    if _layers(transformer):
        raise LoraError("The transformer carries a LoRA already: load it afresh.")
    device = next(transformer.parameters()).device
    with warnings.catch_warnings():  # peft's, that an int8 layer cannot be merged: nothing here merges one
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear")
        transformer.add_adapter(config, adapter_name=ADAPTER)
    for parameter in adapter_parameters(transformer):
        parameter.data = parameter.data.to(device, torch.float32)


def _layers(transformer: torch.nn.Module) -> dict[str, LoraLayer]:
    return {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A
    }


def _factors(layer: LoraLayer) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    """A [rank, in] and B [out, rank] of a layer."""
    a, b = cast(torch.nn.Linear, layer.lora_A[ADAPTER]), cast(torch.nn.Linear, layer.lora_B[ADAPTER])
    return cast(torch.nn.Parameter, a.weight), cast(torch.nn.Parameter, b.weight)


def adapter_parameters(transformer: FluxTransformer2DModel) -> list[torch.nn.Parameter]:
    """A and B of every module, in the model's order."""
    return [p for layer in _layers(transformer).values() for p in _factors(layer)]


@contextmanager
def adapter_disabled(transformer: FluxTransformer2DModel) -> Iterator[None]:
    """The frozen base while the context lasts: the teacher v_o. A transformer without an adapter is its own base."""
    layers = _layers(transformer).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def set_adapter_scale(transformer: FluxTransformer2DModel, scale: float) -> None:
    """Strength of the LoRA: W + scale * alpha / rank * B @ A."""
    for layer in _layers(transformer).values():
        layer.set_scale(ADAPTER, scale)


def adapter_weights(transformer: FluxTransformer2DModel) -> LoraWeights:
    """A copy of the adapter (fp32, CPU)."""

    def copies(layer: LoraLayer) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = (factor.detach().float().cpu().clone() for factor in _factors(layer))
        return a, b

    return {name: (*copies(layer), float(layer.lora_alpha[ADAPTER])) for name, layer in _layers(transformer).items()}


@torch.no_grad()
def set_adapter_weights(transformer: FluxTransformer2DModel, weights: LoraWeights) -> None:
    """Overwrite the adapter's A and B in place (optimisers keep their parameters); LoraError if modules or shapes
    differ."""
    layers = _layers(transformer)
    if set(layers) != set(weights):
        raise LoraError(
            "The LoRA has other modules than the adapter on the transformer: use the same targets and blocks."
        )
    for name, layer in layers.items():
        for parameter, value in zip(_factors(layer), weights[name][:2], strict=True):
            if parameter.shape != value.shape:
                raise LoraError(f"The LoRA has another rank or width at {name}: use the rank it was trained with.")
            parameter.copy_(value)
