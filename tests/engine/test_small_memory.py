"""Trainings that fit small cards: checkpointed blocks compute what plain ones do, quantised ones nearly."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from tests.support.flux_models import fp32_source
from training import trainer
from training.checkpoint import latest_checkpoint
from training.concepts import Concept
from training.errors import SourceError
from training.lora.adapter import add_adapter
from training.lora.format import LoraWeights, read_lora
from training.models.checkpointing import checkpoint_blocks
from training.models.device import use_autocast
from training.models.loading import load_text_encoders, load_transformer, quantise
from training.models.sampling import initial_noise
from training.models.source import QUANTISED, FluxSource
from training.models.text import TextEmbeds
from training.models.variants import variant_of
from training.models.velocity import velocity
from training.request import ErasureRequest
from training.settings import TARGETS, ErasureConfig

pytestmark = pytest.mark.usefixtures("one_thread")
CONCEPT = Concept(
    "car",
    synonyms=("automobile",),
    irrelevant=("dog", "apple", "bus"),
    preserve=("", "a dog", "a photo of an apple", "a red bus"),
)
CONFIG = ErasureConfig(
    steps=4,
    rank=2,
    alpha=2.0,
    erase_prompts=4,
    batch_erase=2,
    batch_preserve=2,
    sampling_steps=3,
    t_min=0.0,
    resolution=64,
    checkpoint_every=100,
    sample_every=4,
    sample_count=1,
    weight_rsc=0.01,
)
Events = list[dict[str, Any]]


def train(flux: FluxSource, out: Path, stop_after: int = 10**9, **settings: Any) -> tuple[LoraWeights, Events]:
    """(the LoRA, the events) of a training in out/job; Stopped after `stop_after` steps."""
    events: Events = []
    request = ErasureRequest(flux, CONCEPT, dataclasses.replace(CONFIG, **settings), "erase-car", str(out), "cpu")
    stop = lambda: any(e["type"] == "step" and e["step"] >= stop_after for e in events)  # noqa: E731
    result = trainer.run(request, out / "job", events.append, stop)
    return read_lora(result["lora"])[0], events


def losses(events: Events) -> list[dict[str, float]]:
    return [e["losses"] for e in events if e["type"] == "step"]


def assert_same(first: LoraWeights, second: LoraWeights) -> None:
    assert list(first) == list(second)
    for name, (a, b, alpha) in first.items():
        assert torch.equal(a, second[name][0]) and torch.equal(b, second[name][1]) and alpha == second[name][2]
        assert b.abs().max() > 0


def assert_same_samples(first: Path, second: Path) -> None:
    pictures = sorted(first.glob("job/samples/*.png"))
    assert pictures
    for path in pictures:
        assert path.read_bytes() == (second / "job" / "samples" / path.name).read_bytes()


@pytest.mark.parametrize("targets", ["text_qk", "every_qk"])
def test_checkpointing_changes_no_bit(flux: FluxSource, tmp_path: Path, targets: str):
    plain, expected = train(flux, tmp_path / "plain", targets=targets)
    lora, events = train(flux, tmp_path / "less", targets=targets, gradient_checkpointing="on")
    assert_same(lora, plain)
    assert losses(events) == losses(expected) and set(losses(events)[0]) == {"esd", "attn", "lora", "rsc"}
    assert_same_samples(tmp_path / "plain", tmp_path / "less")


def test_a_training_may_go_on_with_less_memory(flux: FluxSource, tmp_path: Path):
    whole, _ = train(flux, tmp_path / "whole")
    with pytest.raises(trainer.Stopped):
        train(flux, tmp_path, stop_after=2)
    assert latest_checkpoint(tmp_path / "job" / "checkpoints").step == 2
    lora, events = train(flux, tmp_path, gradient_checkpointing="on")
    assert [e["step"] for e in events if e["type"] == "step"] == [3, 4]
    assert_same(lora, whole)


def test_a_training_with_its_bank_goes_on_without_the_text_encoders(
    flux: FluxSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(trainer.Stopped):
        train(flux, tmp_path, stop_after=2)

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("the text encoders were loaded")

    monkeypatch.setattr(trainer, "load_text_encoders", loaded)
    _, events = train(flux, tmp_path)
    assert [e["step"] for e in events if e["type"] == "step"] == [3, 4]
    with pytest.raises(AssertionError, match="were loaded"):
        train(flux, tmp_path / "another")


# --- Weights in one byte ---------------------------------------------------------------------------------------------


def adapted(flux: FluxSource, scale: float = 0.05) -> tuple[FluxTransformer2DModel, list[torch.nn.Parameter]]:
    """The source's transformer with a LoRA that changes its output, the same whatever the precision."""
    transformer = load_transformer(flux, "cpu")
    parameters = add_adapter(transformer, TARGETS["all"], 4, 4.0, 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data.normal_(std=scale, generator=generator)
    return transformer, parameters


def velocity_and_gradient(flux: FluxSource, embeds: TextEmbeds) -> tuple[torch.Tensor, torch.Tensor]:
    """(velocity, gradient of its distance to a random target), each as one vector."""
    transformer, parameters = adapted(flux)
    if flux.precision in QUANTISED:
        checkpoint_blocks(transformer)
    grid = variant_of(flux).grid
    noise, target = initial_noise([0, 1], grid), initial_noise([2, 3], grid)
    with torch.autocast("cpu", torch.bfloat16, enabled=use_autocast(flux, torch.device("cpu"))):
        found = velocity(transformer, noise, torch.tensor([0.9, 0.5]), embeds, 3.5, grid)
    gradients = torch.autograd.grad((found - target).square().mean(), parameters)
    return found.detach().flatten(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.fixture(scope="module")
def demo_reference(demo_folder: Path) -> tuple[TextEmbeds, torch.Tensor, torch.Tensor]:
    """(prompts, velocity, gradient) of the demo model in fp32."""
    source = fp32_source(demo_folder)
    embeds = load_text_encoders(source, "cpu").encode(["a photo of a car", "a red bus"])
    return (embeds, *velocity_and_gradient(source, embeds))


@pytest.mark.parametrize("precision", QUANTISED)
def test_quantised_weights_compute_nearly_what_fp32_does(demo_folder: Path, demo_reference, precision: str):
    embeds, *exact = demo_reference
    found = velocity_and_gradient(dataclasses.replace(fp32_source(demo_folder), precision=precision), embeds)
    for a, b in zip(found, exact, strict=True):
        assert not torch.equal(a, b)
        assert torch.cosine_similarity(a.double(), b.double(), dim=0) > (0.98 if precision == "nf4" else 0.99)


def stored_bytes(module: torch.nn.Module) -> int:
    """What the tensors of a module's parameters take, those inside a quantised one counted one by one."""
    total = 0
    for parameter in module.parameters():
        total += sum(tensor.nbytes for tensor in inner_tensors(parameter) or [parameter.data])
    return total


def inner_tensors(parameter: torch.Tensor) -> list[torch.Tensor]:
    """What a quantised parameter consists of: torchao's tensors inside, or bitsandbytes' bytes and scales."""
    if state := getattr(parameter, "quant_state", None):
        return [parameter.data, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    if not hasattr(parameter.data, "__tensor_flatten__"):
        return []
    found = (getattr(parameter.data, name) for name in parameter.data.__tensor_flatten__()[0])
    return [tensor for tensor in found if tensor is not None]


@pytest.mark.parametrize("precision", QUANTISED)
def test_quantised_blocks_take_as_many_bytes_as_is_said(demo_folder: Path, demo_reference, precision: str):
    source = dataclasses.replace(fp32_source(demo_folder), precision=precision)
    transformer = load_transformer(source, "cpu")
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    matrices = [(n, m) for block in blocks for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)]
    weights = sum(m.in_features * m.out_features for _, m in matrices)
    modulation = sum(m.in_features * m.out_features for n, m in matrices if n.startswith("norm"))
    # 4 bits per weight, 8 for each 64 of them, and 32 for each 64 × 256; the modulation in fp8
    least = 1.0 if precision != "nf4" else ((weights - modulation) * (4 + 1 / 8 + 1 / 512) / 8 + modulation) / weights

    def check() -> None:
        taken = sum(stored_bytes(block) for block in blocks) / weights
        assert least <= taken < least + 0.03

    check()
    rest = [p for n, p in transformer.named_parameters() if "transformer_blocks." not in n or ".norm_" in n]
    assert rest and {p.dtype for p in rest} == {torch.bfloat16}
    parameters = add_adapter(transformer, TARGETS["text_qk"], 4, 4.0, 0)
    assert {p.dtype for p in parameters} == {torch.float32} and all(p.requires_grad for p in parameters)
    checkpoint_blocks(transformer)
    weights += sum(p.numel() for p in parameters)
    grid = variant_of(source).grid
    with torch.autocast("cpu", torch.bfloat16):
        velocity(transformer, initial_noise(0, grid), 0.5, demo_reference[0][[0]], 3.5, grid).sum().backward()
    assert {p.dtype for p in parameters} == {torch.float32} == {p.grad.dtype for p in parameters}
    check()  # the backward pass has left no weight cast


@pytest.mark.parametrize("precision", QUANTISED)
def test_weights_are_quantised_while_they_are_read_as_they_would_be_afterwards(flux: FluxSource, precision: str):
    small = dataclasses.replace(flux, precision=precision)
    afterwards = load_transformer(flux, "cpu", torch.bfloat16)
    quantise(afterwards, precision)
    read = dict(load_transformer(small, "cpu").named_parameters())
    assert list(read) == [name for name, _ in afterwards.named_parameters()]
    for name, parameter in afterwards.named_parameters():
        pairs = zip(inner_tensors(parameter) or [parameter], inner_tensors(read[name]) or [read[name]], strict=True)
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs), name


@pytest.mark.parametrize("precision", QUANTISED)
def test_training_on_quantised_weights(flux: FluxSource, tmp_path: Path, precision: str):
    small = dataclasses.replace(flux, precision=precision)
    lora, events = train(small, tmp_path)
    assert len(losses(events)) == 4 and all(b.abs().max() > 0 for _, b, _ in lora.values())
    expected = losses(train(dataclasses.replace(flux, precision="bf16"), tmp_path / "bf16")[1])
    assert losses(events)[0]["lora"] < 0.01 and losses(events)[0]["esd"] == pytest.approx(expected[0]["esd"], rel=0.2)


@pytest.mark.parametrize(("precision", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_precision_without_its_library_is_one_sentence(
    flux: FluxSource, monkeypatch: pytest.MonkeyPatch, precision: str, package: str
):
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what cannot be imported
    small = dataclasses.replace(flux, precision=precision)
    for use in (small.validate, lambda: load_transformer(small, "cpu")):
        with pytest.raises(SourceError, match=f"pip install {package}"):
            use()
