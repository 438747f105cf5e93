"""Compiled blocks compute what plain ones do, and are compiled once for each kind, however deep the model is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch._dynamo.testing import CompileCounterWithBackend

from tests.engine.test_small_memory import CONCEPT, CONFIG, losses, train
from tests.support.flux_models import TINY_GRID, TINY_TEXT, tiny_inputs
from training.checkpoint import bank_request_digest, request_digest
from training.errors import ConfigError
from training.lora.adapter import adapter_disabled, add_adapter
from training.models.attention import AttentionCapture, spans_to_mask
from training.models.checkpointing import checkpoint_blocks
from training.models.compiling import compile_blocks, restore_blocks
from training.models.source import FluxSource
from training.models.streaming import stream_blocks
from training.models.velocity import velocity
from training.request import ErasureRequest

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def adapted(blocks: int, way: str) -> tuple[FluxTransformer2DModel, list[torch.nn.Parameter]]:
    """A random Flux of `blocks` double and as many single blocks, with a LoRA that changes its output."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (
            FluxTransformer2DModel(
                in_channels=16,
                num_layers=blocks,
                num_single_layers=blocks,
                attention_head_dim=32,
                num_attention_heads=2,
                joint_attention_dim=24,
                pooled_projection_dim=20,
                guidance_embeds=True,
                axes_dims_rope=(8, 12, 12),
            )
            .eval()
            .requires_grad_(False)
        )
    if way == "streamed":
        stream_blocks(model, CPU, 2)
    elif way == "checkpointed":
        checkpoint_blocks(model)
    parameters = add_adapter(model, ["attn.add_q_proj", "attn.add_k_proj"], 2, 2.0, 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data.normal_(std=0.1, generator=generator)
    return model, parameters


def passes(model: FluxTransformer2DModel, parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """The teacher's velocity; the student's with recorded columns; the gradients of both."""
    latents, t, embeds = tiny_inputs()
    with torch.no_grad(), adapter_disabled(model):
        teacher = velocity(model, latents, t, embeds, 3.5, TINY_GRID)
    capture = AttentionCapture(spans_to_mask([[(1, 3)], [(0, 2)]], TINY_TEXT), range(len(model.transformer_blocks)))
    student = velocity(model, latents, t, embeds, 3.5, TINY_GRID, capture=capture)
    loss = student.square().mean() + sum(columns.mean() for columns in capture.columns)
    gradients = torch.autograd.grad(loss, parameters)
    return [found.detach() for found in (teacher, student, *capture.columns, *gradients)]


@pytest.mark.parametrize("way", ["plain", "checkpointed", "streamed"])
def test_each_kind_of_block_is_compiled_once(way: str):
    graphs = []
    for blocks in (2, 4):
        torch._dynamo.reset()
        backend = CompileCounterWithBackend("aot_eager")  # PyTorch's own operations: nothing is rounded otherwise
        model, parameters = adapted(blocks, way)
        expected = passes(model, parameters)
        compile_blocks(model, backend)
        for found, exact in zip(passes(model, parameters), expected, strict=True):
            torch.testing.assert_close(found, exact)
        graphs.append(backend.frame_count)
        restore_blocks(model)
        passes(model, parameters)
        assert backend.frame_count == graphs[-1]
    # of each kind with gradients and without, and the block whose inputs come from elsewhere: the first of its kind
    assert graphs[0] == graphs[1] <= 8


def test_a_compiled_training_learns_the_same(flux: FluxSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By the compiler that users have; few graphs, since each takes seconds."""
    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # no processes for it
    few = {"method": "esd", "steps": 2, "erase_prompts": 2, "sample_every": 0, "gradient_checkpointing": "on"}
    plain, expected = train(flux, tmp_path / "plain", **few)
    lora, events = train(flux, tmp_path / "compiled", compile=True, **few)
    for found, exact in zip(losses(events), losses(expected), strict=True):
        assert found == pytest.approx(exact, rel=1e-3)
    for name, (_, b, _) in lora.items():
        torch.testing.assert_close(b, plain[name][1], rtol=0.05, atol=1e-4)


def test_compiling_is_another_way_to_the_same_training(tmp_path: Path):
    one = ErasureRequest(FluxSource("diffusers"), CONCEPT, CONFIG, "lora", str(tmp_path))
    two = dataclasses.replace(one, config=dataclasses.replace(CONFIG, compile=True))
    assert (request_digest(one), bank_request_digest(one)) == (request_digest(two), bank_request_digest(two))


def test_without_a_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(ConfigError, match="install g\\+\\+"):
        compile_blocks(adapted(1, "plain")[0])
