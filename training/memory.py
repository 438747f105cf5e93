"""How much memory a training will need on its device, estimated from headers and settings before anything is loaded.

The sizes of weights, adapter, optimisers and trajectory bank are counted exactly. What PyTorch keeps for the backward
pass is counted too, in units of one [tokens, hidden] tensor per block (a checkpointed block keeps one such unit); what
kernels need for a moment, the allocator's waste and the program itself are allowances, fitted to the demo model on a
CPU. There an estimate is good to a third; for accelerators the allowances are assumptions, since nobody has measured
them yet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .models.device import pick_device, weights_dtype
from .models.source import QUANTISED, FluxSource, parameter_count
from .models.text import encoded_at_once
from .models.variants import FluxVariant, training_side, variant_of
from .request import ErasureRequest
from .settings import TARGETS, ErasureConfig, target_blocks

GB = 1024**3

# Tensors of [tokens, hidden] in the weights' dtype that a block keeps for the backward pass: counted on diffusers'
# blocks with PyTorch's saved-tensor hooks, in bf16, where normalisation keeps copies in fp32 (in fp32 it is a sixth
# less; tests/engine/test_memory.py counts again). CAPTURE: more in a double block whose attention is recorded.
KEPT_DOUBLE, KEPT_SINGLE, KEPT_CAPTURE = 15.0, 13.0, 1.3
PASSING = 24.0  # tensors of that size that live for a moment in a pass, whatever its depth
DECODED = 20.0  # values per pixel and base channel that the autoencoder's widest layers hold at a time
PROGRAM = {"cpu": 0.5 * GB, "other": 0.8 * GB}  # interpreter and libraries; on a GPU its context and workspaces
WASTE = {"cpu": 1.6, "other": 1.15}  # what the allocator takes for each byte of a pass: the C library's keeps holes
_BLOCKS = {"transformer_blocks", "single_transformer_blocks", "double_blocks", "single_blocks"}  # in both layouts
SMALLEST_SIDE = 4  # image tokens per side, below which no setting goes

_PHASE_OF = {"encode": "encode", "bank": "bank", "train": "train", "samples": "samples", "save": "train"}


NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes per weight: 4 bits, 8 for each 64 weights, 32 for each 256 of those
_MODULATION = re.compile(r"\.(norm1?(_context)?\.linear|\w*mod(ulation)?\.lin)\.weight$")  # in both layouts


@dataclass(frozen=True)
class BlockSize:
    """How many numbers are in a block: its modulation's matrix, its other matrices, and what is small."""

    modulation: int = 0
    matrices: int = 0
    small: int = 0

    @property
    def numbers(self) -> int:
        return self.modulation + self.matrices + self.small

    def stored(self, precision: str, weight: int) -> float:
        """Bytes of the block as `loading.quantise` leaves it. weight: bytes of a number that is not quantised."""
        if precision == "nf4":
            return NF4 * self.matrices + self.modulation + weight * self.small
        if precision in QUANTISED:
            return self.matrices + self.modulation + weight * self.small
        return weight * self.numbers


@dataclass(frozen=True)
class ModelSize:
    """What an estimate needs to know of a model.

    geometry: the transformer's, under diffusers' names; blocks: its double and single blocks; rest: numbers in what is
    no block; layer: numbers in its largest matrix; clip, t5, vae: numbers in the text encoders, in the autoencoder;
    t5_layer: in T5's largest matrix; t5_heads, t5_inner: its attention heads, and its feed-forward layers' inner width;
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
    """(the blocks, the rest, the largest matrix of a block) as `ModelSize` has them, from a transformer's tensors in
    either layout."""
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
    """The size of a source on this machine, from headers. Raises SourceError."""
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
    """Bytes on the training's device, by phase ("encode", "bank", "train", "samples"), not all at the same time.

    waiting: bytes in the computer's own memory, where weights wait that stream to another device; ring: of the buffers
    that the transformer's blocks stream through, a part of each phase but the first.
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
    """The estimate for a request. size: of its model, read from the headers on this machine where it is not given.
    pictures: rendered at a time, where that is not for the settings to say.

    Raises SourceError.
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
    chunk = (
        min(32, max(config.erase_prompts, preserved)) if geometry["num_attention_heads"] < 24 else 1
    )  # as bank.record() takes samples
    pixels = (16 * side) ** 2 * size.channels
    seeds = pictures or (config.sample_count if config.sample_every else 0)
    streamed = kind != "cpu" and config.streams_encoder(precision)
    encoders = size.clip + (2 * size.t5_layer if streamed else size.t5)
    resident = program + weights.resident
    picture = DECODED * pixels * weight + PASSING * unit
    phases = {
        "encode": program + encoders * weight + encoded_at_once(size.t5_heads) * WASTE[kind] * _prompt(size, weight),
        "bank": resident + bank + weights.layer + PASSING * chunk * unit,
        "train": resident
        + adapter
        + bank
        + weights.cast
        + (kept(config, geometry, precision) + PASSING * largest_batch(config)) * unit,
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
    """Bytes of the transformer on the device: what stays there, and what is cast for computing, which autograd keeps
    in a training's backward pass, and of which other passes hold one layer at a time. waiting: what is elsewhere. ring:
    the buffers that blocks stream through, of what stays."""

    resident: float
    cast: int
    layer: int
    waiting: float
    ring: float


def transformer_weights(size: ModelSize, config: ErasureConfig, precision: str, weight: int, shared: bool) -> _Weights:
    """The transformer's bytes. weight: bytes of a number that is not quantised; shared: whether the device's memory
    is the computer's own, in which streamed blocks wait."""
    stored = [block.stored(precision, weight) for block in size.blocks]
    held, waiting, ring = sum(stored), 0.0, 0.0
    if config.stream_blocks:
        ring, waiting = min(config.stream_blocks, len(stored)) * max(stored, default=0.0), held
        held = ring + held if shared else ring
    cast = layer = 0
    if precision in QUANTISED:
        numbers = [block.numbers for block in size.blocks]
        cast = weight * (max(numbers, default=0) if config.checkpoints_blocks(precision) else sum(numbers))
        layer = weight * size.layer
    return _Weights(held + size.rest * weight, cast, layer, waiting, ring)


def kept(config: ErasureConfig, geometry: Mapping[str, Any], precision: str = "auto") -> float:
    """Units of one sample's [tokens, hidden] tensor that are kept for the backward pass of the largest update.

    Checkpointed blocks keep what goes into them, one unit each, and the one that is replayed keeps all of its own.
    """
    double, single = geometry["num_layers"], geometry["num_single_layers"]
    reached = target_blocks(config.targets, config.blocks, double, single)
    first = min(reached, default=0)  # blocks before the first LoRA need no gradient
    doubles, singles = max(0, double - first), single - max(0, first - double)
    plain = KEPT_DOUBLE * doubles + KEPT_SINGLE * singles
    captured = len(config.capture_blocks) or double
    capture = KEPT_CAPTURE if config.method == "eraseanything" else 0
    if config.checkpoints_blocks(precision):
        plain = doubles + singles
        replayed = (KEPT_DOUBLE + capture if doubles else KEPT_SINGLE) * largest_batch(config)
        return _largest_update(config, config.batch_erase * plain, (config.batch_preserve + 1) * plain) + replayed
    erase = config.batch_erase * (plain + capture * captured)
    return _largest_update(config, erase, (config.batch_preserve + 1) * plain)


def _largest_update(config: ErasureConfig, erase: float, preserve: float) -> float:
    """What the largest update keeps: of the larger of two levels, or of their sum where they are updated as one."""
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
    """Bytes that are free now on a device as a request names it, for any program; None where that cannot be told.

    On the CPU (and where the GPU has no memory of its own) what the system could hand out without swapping.
    """
    import torch

    place = pick_device(device)
    try:
        if place.type in ("cuda", "xpu"):
            return int(getattr(torch, place.type).mem_get_info(place)[0])
    except (RuntimeError, AssertionError, AttributeError):  # no such device here: the worker will say so
        return None
    import psutil

    return int(psutil.virtual_memory().available)


# --- Cheaper settings --------------------------------------------------------------------------------------------


def cheaper(request: ErasureRequest, phase: str = "train") -> tuple[ErasureRequest, str] | None:
    """The request with the next setting changed that saves memory in a phase, and what changes in a few words.

    In this order, the least harmful first: gradient checkpointing (the same LoRA), smaller batches, fewer sample
    images, no sample images, on an accelerator fp8 weights and streamed blocks, a lower resolution, bf16 weights. None
    where nothing is left.
    """
    return next(_cheaper(request, _PHASE_OF.get(phase, "train")), None)


def _cheaper(request: ErasureRequest, phase: str) -> Iterator[tuple[ErasureRequest, str]]:
    config = request.config

    def with_settings(**changes: int | str) -> ErasureRequest:
        return replace(request, config=replace(config, **changes))

    def saves(other: ErasureRequest) -> bool:
        return estimate_memory(other).phases[phase] < estimate_memory(request).phases[phase]

    if phase == "train" and not config.checkpoints_blocks(request.source.precision):
        yield with_settings(gradient_checkpointing="on"), "gradient checkpointing"

    decided = config.for_kind(request.concept.kind)
    erase, preserve = decided.batch_erase, decided.batch_preserve
    if phase == "train" and max(erase, preserve) > 1:
        halves = {"batch_erase": max(1, erase // 2), "batch_preserve": max(1, preserve // 2)}
        sizes = (("erase", erase, halves["batch_erase"]), ("preserve", preserve, halves["batch_preserve"]))
        what = ", ".join(f"{name} {old} → {new}" for name, old, new in sizes if old != new)
        yield with_settings(**halves), f"smaller batches ({what})"
    if phase == "samples" and config.sample_every:
        if config.sample_count > 1:
            yield with_settings(sample_count=1), f"one sample image instead of {config.sample_count} at a time"
        else:
            yield with_settings(sample_every=0), "no sample images"
    if phase != "encode" and _on_accelerator(request):
        uncompiled = replace(config, compile=False)
        quantised = replace(request, source=replace(request.source, precision="fp8"), config=uncompiled)
        if request.source.precision not in QUANTISED and saves(quantised):
            yield quantised, "fp8 weights"
        streamed = with_settings(stream_blocks=2, gradient_checkpointing="auto")
        if not config.stream_blocks and saves(streamed):
            yield streamed, "streamed blocks"
    side = training_side(config.resolution, variant_of(request.source))
    lower = side * 3 // 4
    if phase != "encode" and lower >= SMALLEST_SIDE:
        yield with_settings(resolution=16 * lower), f"a lower resolution ({16 * side} → {16 * lower} pixels)"
    if request.source.precision not in ("bf16", *QUANTISED):
        halved = replace(request, source=replace(request.source, precision="bf16"))
        if estimate_memory(halved).need < estimate_memory(request).need:
            yield halved, "bf16 weights"


def _on_accelerator(request: ErasureRequest) -> bool:
    return pick_device(request.device).type != "cpu"


def shortage(request: ErasureRequest, free: int) -> str:
    """Why a request does not fit into `free` bytes and what would help, as one sentence; empty where it fits."""
    estimate = estimate_memory(request)
    if estimate.need <= free:
        return ""
    fitting, smaller = request, estimate
    while smaller.need > free:
        found = cheaper(fitting, smaller.peak)
        if found is None:
            break
        fitting = found[0]
        smaller = estimate_memory(fitting)
    missing = f"{(estimate.need - free) / GB:.1f} GB of memory are missing"
    where = f"on {pick_device(request.device)}"
    needs = f"the training needs about {estimate.need / GB:.1f} GB {where}, {free / GB:.1f} GB are free"
    if smaller.need > free:
        return f"Waiting: {missing} ({needs}): close other programs, no setting makes it fit."
    return f"Waiting: {missing} ({needs}): close other programs, or train with {_differences(request, fitting)}."


def _differences(old: ErasureRequest, new: ErasureRequest) -> str:
    """The settings that cheaper() has changed, with their new values."""
    before, after = old.config.to_dict(), new.config.to_dict()
    changed = [f"{name} {value}" for name, value in after.items() if value != before[name]]
    if old.source.precision != new.source.precision:
        changed.append(f"precision {new.source.precision}")
    return ", ".join(changed)
