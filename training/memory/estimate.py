"""Bytes that each phase of a training will take on its device, from headers and settings, before anything is loaded.

The sizes of weights, adapter, optimisers and trajectory bank are counted exactly. What PyTorch keeps for the backward
pass is counted too, in units of one [tokens, hidden] tensor per block (a checkpointed block keeps one such unit); what
kernels need for a moment, the allocator's waste and the program itself are allowances, fitted to the demo model on a
CPU. There an estimate is good to a third; for accelerators the allowances are assumptions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from ..models.batches import prompts_at_once, trajectories_at_once
from ..models.device import pick_device, weights_dtype
from ..models.source import QUANTISED, FluxSource, parameter_count
from ..models.variants import FluxVariant, training_side, variant_of
from ..request import ErasureRequest
from ..settings import TARGETS, ErasureConfig, target_blocks

GB = 1024**3

# Tensors of [tokens, hidden] in the weights' dtype that a block saves for the backward pass: counted on diffusers'
# blocks with PyTorch's saved-tensor hooks, in bf16, where normalisation keeps copies in fp32 (in fp32 it is a sixth
# less; tests/engine/test_memory.py counts again). SAVED_CAPTURE: more in a double block whose attention is recorded.
SAVED_DOUBLE, SAVED_SINGLE, SAVED_CAPTURE = 15.0, 13.0, 1.3
PASSING = 24.0  # tensors of that size that live for a moment in a pass, whatever its depth
DECODED = 20.0  # values per pixel and base channel that the autoencoder's widest layers hold at a time
PROGRAM = {"cpu": 0.5 * GB, "other": 0.8 * GB}  # interpreter and libraries; on a GPU its context and workspaces
WASTE = {"cpu": 1.6, "other": 1.15}  # what the allocator takes for each byte of a pass: the C library's keeps holes
_BLOCKS = {"transformer_blocks", "single_transformer_blocks", "double_blocks", "single_blocks"}  # in both layouts
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes per weight: 4 bits, 8 for each 64 weights, 32 for each 256 of those
_MODULATION = re.compile(r"\.(norm1?(_context)?\.linear|\w*mod(ulation)?\.lin)\.weight$")  # in both layouts


@dataclass(frozen=True)
class BlockSize:
    """How many numbers a block has: in its modulation's matrix, in its other matrices, in vectors (`small`)."""

    modulation: int = 0
    matrices: int = 0
    small: int = 0

    @property
    def numbers(self) -> int:
        return self.modulation + self.matrices + self.small

    def stored(self, precision: str, weight: int) -> float:
        """Bytes of the block as `loading.quantise` leaves it; `weight`: of a number that is not quantised."""
        if precision == "nf4":
            return NF4 * self.matrices + self.modulation + weight * self.small
        if precision in QUANTISED:
            return self.matrices + self.modulation + weight * self.small
        return weight * self.numbers


@dataclass(frozen=True)
class ModelSize:
    """What an estimate needs to know of a model.

    Attributes:
        geometry: the transformer's, under diffusers' names.
        blocks: its double and single blocks.
        rest: numbers in what is no block.
        layer: numbers in its largest matrix.
        clip, t5, vae: numbers in the text encoders and in the autoencoder.
        t5_layer: numbers in T5's largest matrix.
        t5_heads, t5_inner: T5's attention heads, and the inner width of its feed-forward layers.
        channels: of the autoencoder's widest layers, those at full resolution.
    """

    variant: FluxVariant
    geometry: Mapping[str, Any]
    blocks: tuple[BlockSize, ...]
    rest: int
    layer: int
    clip: int
    t5: int
    t5_layer: int
    t5_heads: int
    t5_inner: int
    vae: int
    channels: int


def block_sizes(shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[BlockSize, ...], int, int]:
    """`ModelSize`'s (blocks, rest, layer) from the shapes of a transformer's tensors, in either layout."""
    blocks: dict[tuple[str, str], BlockSize] = {}
    rest = layer = 0
    for name, shape in shapes.items():
        part, _, inner = name.partition(".")
        count = math.prod(shape)
        if part not in _BLOCKS:
            rest += count
            continue
        key = (part, inner.split(".")[0])
        kind = "small" if len(shape) < 2 else "modulation" if _MODULATION.search(name) else "matrices"
        old = blocks.get(key, BlockSize())
        blocks[key] = replace(old, **{kind: getattr(old, kind) + count})
        layer = max(layer, count) if len(shape) > 1 else layer
    return tuple(blocks.values()), rest, layer


def model_size(source: FluxSource) -> ModelSize:
    """The size of a source's model, from the headers of its files. Raises SourceError."""
    blocks, rest, layer = block_sizes(source.transformer_shapes())
    clip, t5, vae = (source.shapes(part) for part in ("clip_l", "t5", "vae"))
    first = "encoder.block.0.layer"
    return ModelSize(
        variant_of(source),
        source.transformer_config(),
        blocks,
        rest,
        layer,
        parameter_count(clip),
        parameter_count(t5),
        max(math.prod(shape) for shape in t5.values()),
        t5[f"{first}.0.SelfAttention.relative_attention_bias.weight"][1],
        t5[f"{first}.1.DenseReluDense.wi_0.weight"][0],
        parameter_count(vae),
        vae["decoder.conv_out.weight"][1],
    )


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated bytes.

    Attributes:
        phases: on the training's device, by phase ("encode", "bank", "train", "samples"); not all at the same time.
        waiting: in the computer's own memory, where weights wait that stream to another device.
        ring: of the buffers that the transformer's blocks stream through; a part of each phase but the first.
    """

    phases: dict[str, int]
    waiting: int = 0
    ring: int = 0

    @property
    def peak(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=self.phases.__getitem__)

    @property
    def need(self) -> int:
        """What must be free for all of them."""
        return self.phases[self.peak]


def estimate_memory(
    request: ErasureRequest, size: ModelSize | None = None, pictures: int | None = None
) -> MemoryEstimate:
    """The estimate for a request.

    Args:
        size: of its model; read from the headers of its files where it is not given.
        pictures: rendered at a time, where that is not for the settings to say.

    Raises:
        SourceError: the files are missing or do not fit together.
    """
    size, config = size or model_size(request.source), request.config.for_kind(request.concept.kind)
    precision, device = request.source.precision, pick_device(request.device)
    weight = weights_dtype(precision, device).itemsize
    kind = "cpu" if device.type == "cpu" else "other"
    program, geometry, variant = PROGRAM[kind], size.geometry, size.variant
    hidden = geometry["num_attention_heads"] * geometry["attention_head_dim"]
    side = training_side(config.resolution, variant)
    tokens = side * side + variant.sequence_length
    unit = WASTE[kind] * tokens * hidden * weight  # bytes for one [tokens, hidden] tensor of one sample
    weights = transformer_weights(size, config, precision, weight, shared=kind == "cpu")
    # weights and gradients of the LoRA in fp32, and AdamW's two moments for each of at most two levels
    adapter = adapter_parameters(config, geometry) * 4 * (2 + 2 * 2)
    preserved = min(config.preserve_prompts, len(request.concept.preserve))
    steps = config.sampling_steps or variant.default_steps
    points = (config.erase_prompts + preserved) * steps  # at most: only those with t > t_min
    bank = points * 3 * side * side * geometry["in_channels"] * (4 if weight == 4 else 2)
    bank = bank if device.type == "cpu" else 0  # it stays in the computer's own memory
    chunk = min(trajectories_at_once(geometry["num_attention_heads"]), max(config.erase_prompts, preserved))
    pixels = (16 * side) ** 2 * size.channels
    seeds = pictures or (config.sample_count if config.sample_every else 0)
    streamed = kind != "cpu" and config.streams_encoder(precision)
    encoders = size.clip + (2 * size.t5_layer if streamed else size.t5)
    resident = program + weights.resident
    picture = DECODED * pixels * weight + PASSING * unit
    phases = {
        "encode": program + encoders * weight + prompts_at_once(size.t5_heads) * WASTE[kind] * _prompt(size, weight),
        "bank": resident + bank + weights.layer + PASSING * chunk * unit,
        "train": resident
        + adapter
        + bank
        + weights.cast
        + (saved_units(config, geometry, precision) + PASSING * largest_batch(config)) * unit,
        "samples": resident + adapter + bank + weights.layer + size.vae * weight + seeds * picture,
    }
    waiting = max(weights.waiting, size.t5 * weight if streamed else 0) if kind != "cpu" else 0
    return MemoryEstimate({name: int(taken) for name, taken in phases.items()}, int(waiting), int(weights.ring))


def _prompt(size: ModelSize, weight: int) -> int:
    """Bytes that T5 takes for a moment for one prompt: attention in its weights' dtype and twice in fp32, as it is
    softmaxed, and the gated feed-forward layer."""
    length = size.variant.sequence_length
    return size.t5_heads * length**2 * (weight + 8) + 3 * length * size.t5_inner * weight


@dataclass(frozen=True)
class _Weights:
    """Bytes of the transformer.

    Attributes:
        resident: what stays on the device.
        cast: what a training casts to compute with, all of which autograd saves.
        layer: what other passes hold of that at a time: one layer.
        waiting: what waits elsewhere.
        ring: of `resident`, the buffers that blocks stream through.
    """

    resident: float
    cast: int
    layer: int
    waiting: float
    ring: float


def transformer_weights(size: ModelSize, config: ErasureConfig, precision: str, weight: int, shared: bool) -> _Weights:
    """The transformer's bytes.

    Args:
        weight: bytes of a number that is not quantised.
        shared: whether the device's memory is the computer's own, in which streamed blocks wait.
    """
    stored = [block.stored(precision, weight) for block in size.blocks]
    resident, waiting, ring = sum(stored), 0.0, 0.0
    if config.stream_blocks:
        ring, waiting = min(config.stream_blocks, len(stored)) * max(stored, default=0.0), resident
        resident = ring + resident if shared else ring
    cast = layer = 0
    if precision in QUANTISED:
        numbers = [block.numbers for block in size.blocks]
        cast = weight * (max(numbers, default=0) if config.checkpoints_blocks(precision) else sum(numbers))
        layer = weight * size.layer
    return _Weights(resident + size.rest * weight, cast, layer, waiting, ring)


def saved_units(config: ErasureConfig, geometry: Mapping[str, Any], precision: str = "auto") -> float:
    """Units of one sample's [tokens, hidden] tensor that autograd saves for the backward pass of the largest update.

    Checkpointed blocks save what goes into them, one unit each, and the one that is replayed saves all of its own.
    """
    double, single = geometry["num_layers"], geometry["num_single_layers"]
    reached = target_blocks(config.targets, config.blocks, double, single)
    first = min(reached, default=0)  # blocks before the first LoRA need no gradient
    doubles, singles = max(0, double - first), single - max(0, first - double)
    plain = SAVED_DOUBLE * doubles + SAVED_SINGLE * singles
    captured = len(config.capture_blocks) or double
    capture = SAVED_CAPTURE if config.method == "eraseanything" else 0
    if config.checkpoints_blocks(precision):
        plain = doubles + singles
        replayed = (SAVED_DOUBLE + capture if doubles else SAVED_SINGLE) * largest_batch(config)
        return _largest_update(config, config.batch_erase * plain, (config.batch_preserve + 1) * plain) + replayed
    erase = config.batch_erase * (plain + capture * captured)
    return _largest_update(config, erase, (config.batch_preserve + 1) * plain)


def _largest_update(config: ErasureConfig, erase: float, preserve: float) -> float:
    """What the largest update saves: of the larger of two levels, or of their sum where they are updated as one."""
    if config.method == "esd":
        return erase
    return max(erase, preserve) if config.method == "eraseanything" and config.bilevel else erase + preserve


def largest_batch(config: ErasureConfig) -> int:
    """Samples in the largest forward pass."""
    return max(config.batch_erase, config.batch_preserve)


def adapter_parameters(config: ErasureConfig, geometry: Mapping[str, Any]) -> int:
    """Numbers in the LoRA: every target is a square projection of the hidden size."""
    hidden = geometry["num_attention_heads"] * geometry["attention_head_dim"]
    double, single = geometry["num_layers"], geometry["num_single_layers"]
    blocks = target_blocks(config.targets, config.blocks, double, single)
    text = sum(name.split(".")[1].startswith("add_") for name in TARGETS[config.targets])
    in_double = len(TARGETS[config.targets])
    count = sum(in_double if block < double else in_double - text for block in blocks)
    return count * 2 * config.rank * hidden


def free_memory(device: str) -> int | None:
    """Bytes that are free now, for any program, on a device as a request names it; None where that cannot be known.

    On the CPU (and where the GPU has no memory of its own): what the system could hand out without swapping.
    """
    place = pick_device(device)
    try:
        if place.type in ("cuda", "xpu"):
            return int(getattr(torch, place.type).mem_get_info(place)[0])
    except (RuntimeError, AssertionError, AttributeError):  # no such device here: the worker will say so
        return None
    return int(psutil.virtual_memory().available)
