"""Block streaming: the same bits as the resident model in every kind of pass, with no more than the ring resident."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from tests.engine.test_small_memory import assert_same, assert_same_samples, inner_tensors, losses, train
from tests.support.flux_models import TINY_GRID, TINY_TEXT, tiny_inputs, tiny_transformer
from training import trainer
from training.errors import ConfigError
from training.lora.adapter import adapter_disabled, adapter_weights, add_adapter, set_adapter_weights
from training.models.attention import AttentionCapture
from training.models.checkpointing import checkpoint_blocks
from training.models.concept_attention import ConceptCapture
from training.models.loading import load_text_encoders, quantise
from training.models.sampling import sample
from training.models.source import FluxSource
from training.models.streaming import BlockStream, stream_blocks
from training.models.velocity import velocity
from training.settings import TARGETS

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
STORED = ("fp32", "fp8", "int8", "nf4")


def base(stored: str) -> FluxTransformer2DModel:
    transformer = tiny_transformer(dtype=torch.float32 if stored == "fp32" else torch.bfloat16)
    if stored != "fp32":
        quantise(transformer, stored)
    return transformer


def adapted(transformer: FluxTransformer2DModel) -> list[torch.nn.Parameter]:
    parameters = add_adapter(transformer, TARGETS["every_qk"], 2, 2.0, 0)
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters:
        parameter.data.normal_(std=0.2, generator=generator)
    return parameters


def pair(stored: str, ring: int) -> tuple[FluxTransformer2DModel, FluxTransformer2DModel, BlockStream]:
    """(resident and checkpointed, streamed, its stream), both with the same LoRA."""
    resident, streamed = base(stored), base(stored)
    checkpoint_blocks(resident)
    stream = stream_blocks(streamed, CPU, ring)
    adapted(resident), adapted(streamed)
    return resident, streamed, stream


@contextmanager
def computing(stored: str) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16, enabled=stored != "fp32"):
        yield


def trainable(transformer: FluxTransformer2DModel) -> list[torch.nn.Parameter]:
    return [p for p in transformer.parameters() if p.requires_grad]


def two_passes(transformer: FluxTransformer2DModel, stored: str) -> tuple[Tensor, list[Tensor]]:
    """(loss, gradients) of a pass with attention and a truncated one whose graphs live together, as in a training."""
    latents, t, embeds = tiny_inputs()
    with computing(stored):
        capture = AttentionCapture(torch.ones(1, TINY_TEXT), [0, 1, 3])
        out = velocity(transformer, latents, t, embeds, 3.5, TINY_GRID, capture=capture)
        early = AttentionCapture(torch.eye(TINY_TEXT)[None], [0, 1])
        assert velocity(transformer, latents, t, embeds, 3.5, TINY_GRID, capture=early, stop_after_block=1) is None
    # weights that differ, so that no two columns' gradients are alike
    columns = [*capture.columns, *early.columns]
    loss = out.pow(2).mean() + sum((n + 1) * c.float().pow(2).mean() for n, c in enumerate(columns))
    return loss.detach(), list(torch.autograd.grad(loss, trainable(transformer)))


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("ring", [2, 3, 9])
def test_losses_and_gradients_are_the_same_bit_by_bit(stored: str, ring: int):
    resident, streamed, _ = pair(stored, ring)
    (loss, gradients), (other, others) = two_passes(resident, stored), two_passes(streamed, stored)
    assert torch.equal(loss, other) and len(gradients) == len(others) == 24
    for a, b in zip(gradients, others, strict=True):
        assert a.abs().max() > 0 and torch.equal(a, b)


def test_the_base_alone_sampling_and_concepts():
    resident, streamed, _ = pair("fp32", 2)
    latents, t, embeds = tiny_inputs()
    found = []
    for transformer in (resident, streamed):
        with torch.no_grad(), adapter_disabled(transformer):
            teacher = velocity(transformer, latents, t, embeds, 3.5, TINY_GRID)
        concepts = ConceptCapture(torch.randn(1, 2, 24, generator=torch.Generator().manual_seed(8)), [0, 1])
        with torch.no_grad():
            velocity(transformer, latents, t, embeds, 3.5, TINY_GRID, capture=concepts)
        picture = sample(transformer, embeds, latents, torch.tensor([1.0, 0.7, 0.3, 0.0]), 3.5, TINY_GRID)
        found.append([teacher, *concepts.shares, picture])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(
        found[0][0], velocity(resident, latents, t, embeds, 3.5, TINY_GRID)
    )  # the LoRA does something


def frozen_storages(block: torch.nn.Module) -> set[int]:
    """Where the bytes of a block's frozen weights are."""
    found = set()
    for parameter in block.parameters():
        tensors = inner_tensors(parameter) or [parameter]
        found |= {t.untyped_storage().data_ptr() for t in tensors if not parameter.requires_grad}
    return found


@pytest.mark.parametrize("stored", ["fp32", "int8", "nf4"])
def test_only_the_ring_is_on_the_device(stored: str):
    _, streamed, stream = pair(stored, 2)
    blocks = [*streamed.transformer_blocks, *streamed.single_transformer_blocks]
    slots = {slot.untyped_storage().data_ptr() for slot in stream.slots}
    host = {buffer.untyped_storage().data_ptr() for buffer in stream.host}
    assert sum(slot.nbytes for slot in stream.slots) == 2 * max(buffer.nbytes for buffer in stream.host)
    copies: list[int] = []

    def look(index: int):
        def hook(*_: object) -> None:
            copies.append(index)
            assert len(frozen_storages(blocks[index]) & slots) == 1  # the block that computes, in one slot
            others = [frozen_storages(block) for block in blocks if block is not blocks[index]]
            assert all(storages <= host for storages in others)

        return hook

    for index, block in enumerate(blocks):
        block.attn.register_forward_pre_hook(look(index))
    before = [buffer.clone() for buffer in stream.host]
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        two_passes(streamed, stored)
    assert copies == [0, 1, 2, 3, 0, 1, 1, 0, 3, 2, 1, 0]  # two forward passes, then their replays, last first
    assert not slots & set(kept)
    assert all(frozen_storages(block) <= host for block in blocks)
    assert all(torch.equal(a, b) for a, b in zip(before, stream.host, strict=True))  # nothing travels back
    on_device = {p.untyped_storage().data_ptr() for p in trainable(streamed)}
    assert len(on_device) == 24 and not on_device & (host | slots)


def test_blocks_are_copied_ahead_of_use(monkeypatch: pytest.MonkeyPatch):
    """Each block of a forward pass or of its replay is there when it is asked for, but for the very first."""
    _, streamed, stream = pair("fp32", 2)
    missed: list[int] = []
    fetch = stream._fetch

    def counted(index: int, busy: int | None) -> int:
        if busy is None and index not in stream.held:
            missed.append(index)
        return fetch(index, busy)

    monkeypatch.setattr(stream, "_fetch", counted)
    latents, t, embeds = tiny_inputs()
    velocity(streamed, latents, t, embeds, 3.5, TINY_GRID).sum().backward()
    assert missed == [0]
    missed.clear()
    with torch.no_grad():
        for _ in range(3):
            velocity(streamed, latents, t, embeds, 3.5, TINY_GRID)
    assert missed in ([], [0])


def test_a_backward_pass_can_be_run_twice_and_a_lora_be_read_and_written():
    resident, streamed, _ = pair("fp32", 2)
    latents, t, embeds = tiny_inputs()
    set_adapter_weights(streamed, {name: (a + 1, b, s) for name, (a, b, s) in adapter_weights(streamed).items()})
    set_adapter_weights(resident, adapter_weights(streamed))
    loss, other = (velocity(m, latents, t, embeds, 3.5, TINY_GRID).pow(2).sum() for m in (resident, streamed))
    expected = torch.autograd.grad(loss, trainable(resident))
    for _ in range(2):
        found = torch.autograd.grad(other, trainable(streamed), retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_what_cannot_be_streamed_is_one_sentence():
    latents, t, embeds = tiny_inputs()
    with pytest.raises(ConfigError, match="2 blocks"):
        stream_blocks(tiny_transformer(), CPU, 1)
    late = tiny_transformer()
    adapted(late)
    with pytest.raises(ConfigError, match="before a LoRA"):
        stream_blocks(late, CPU, 2)
    _, streamed, _ = pair("fp32", 2)
    streamed.disable_gradient_checkpointing()
    with pytest.raises(ConfigError, match="gradient checkpointing"):
        velocity(streamed, latents, t, embeds, 3.5, TINY_GRID)


def test_a_training_that_is_paused_and_resumed_is_the_same_bit_by_bit(flux: FluxSource, tmp_path: Path):
    """Bank, refresh (student and teacher), both levels, samples, checkpoints."""
    settings = {"targets": "every_qk", "refresh_every": 2}
    lora, events = train(flux, tmp_path / "resident", gradient_checkpointing="on", **settings)
    with pytest.raises(trainer.Stopped):
        train(flux, tmp_path / "streamed", stop_after=2, stream_blocks=2, **settings)
    streamed, later = train(flux, tmp_path / "streamed", stream_blocks=2, **settings)
    assert_same(streamed, lora)
    assert losses(later) == losses(events)[2:] and len(losses(later)) == 2
    assert_same_samples(tmp_path / "resident", tmp_path / "streamed")


def test_the_text_encoder_streams_too(flux: FluxSource):
    resident, streamed = (load_text_encoders(flux, "cpu", stream=stream) for stream in (False, True))
    prompts = ["a photo of a car", "a red bus", ""]
    assert {p.device.type for p in streamed.t5.parameters()} == {"meta"}  # nothing of it stays on the device
    for a, b in zip(*(vars(e.encode(prompts)).values() for e in (resident, streamed)), strict=True):
        assert torch.equal(a, b) and a.abs().max() > 0
    assert {p.device.type for p in streamed.t5.parameters()} == {"meta"}
