"""The adapter against the formula W + scale * alpha / rank * B A, and the file it is written to."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import training.lora.format as lora_format
from tests.support.flux_models import TINY_GRID, tiny_inputs, tiny_transformer
from training import files
from training.errors import ConfigError, LoraError
from training.lora.adapter import (
    adapter_disabled,
    adapter_parameters,
    adapter_weights,
    add_adapter,
    load_adapter,
    remove_adapter,
    set_adapter_scale,
    set_adapter_weights,
    target_modules,
)
from training.lora.format import LoraWeights, make_metadata, read_lora, read_metadata, write_lora
from training.models.velocity import velocity

TARGETS = ["attn.add_q_proj", "attn.add_k_proj"]


def flow(model) -> torch.Tensor:
    latents, t, embeds = tiny_inputs()
    return velocity(model, latents, t, embeds, 3.5, TINY_GRID)


def with_adapter(rank: int = 3, alpha: float = 6.0):
    model = tiny_transformer()
    parameters = add_adapter(model, TARGETS, rank, alpha, seed=0)
    generator = torch.Generator().manual_seed(5)
    for parameter in parameters:
        parameter.data.normal_(std=0.3, generator=generator)
    return model


def test_without_its_adapter_a_model_is_its_base_and_takes_another() -> None:
    model, base = with_adapter(), flow(tiny_transformer())
    assert not torch.equal(flow(model), base)
    first = adapter_weights(model)
    remove_adapter(model)
    remove_adapter(model)  # nothing is left to remove
    assert torch.equal(flow(model), base) and not any(p.requires_grad for p in model.parameters())
    load_adapter(model, {name: (a, 2 * b, alpha) for name, (a, b, alpha) in first.items()})
    torch.testing.assert_close(flow(model), flow(merged(first, 2.0)), rtol=1e-4, atol=1e-5)


def merged(weights: LoraWeights, scale: float):
    """A transformer without adapter whose weights are changed by the formula."""
    model = tiny_transformer()
    for name, (a, b, alpha) in weights.items():
        model.get_submodule(name).weight.data += scale * alpha / a.shape[0] * b @ a
    return model


@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0, 1.5])
def test_scale_is_the_formula(scale: float) -> None:
    model = with_adapter()
    base = flow(tiny_transformer())
    set_adapter_scale(model, scale)
    torch.testing.assert_close(flow(model), flow(merged(adapter_weights(model), scale)), rtol=1e-4, atol=1e-5)
    assert torch.equal(flow(model), base) == (scale == 0)


def test_fresh_adapter_changes_nothing_and_follows_its_seed() -> None:
    state = torch.random.get_rng_state()
    model = tiny_transformer()
    parameters = add_adapter(model, TARGETS, 3, 3, seed=11)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(flow(model), flow(tiny_transformer()))
    assert len(parameters) == 2 * 2 * 2 and all(p.requires_grad and p.dtype == torch.float32 for p in parameters)
    assert [p for p in model.parameters() if p.requires_grad] == parameters
    again, other = tiny_transformer(), tiny_transformer()
    same = add_adapter(again, TARGETS, 3, 3, seed=11)
    different = add_adapter(other, TARGETS, 3, 3, seed=12)
    assert all(torch.equal(a, b) for a, b in zip(parameters, same, strict=True))
    assert not torch.equal(parameters[0], different[0])


def test_teacher_is_the_base_and_training_goes_on_after_it() -> None:
    model = with_adapter()
    student = flow(model)
    with adapter_disabled(model):
        assert torch.equal(flow(model), flow(tiny_transformer()))
    assert torch.equal(flow(model), student) and not torch.equal(student, flow(tiny_transformer()))
    flow(model).pow(2).mean().backward()
    assert all(parameter.grad is not None for parameter in adapter_parameters(model))
    base = tiny_transformer()
    with adapter_disabled(base):  # without an adapter there is nothing to switch off
        flow(base)


def test_adapter_on_a_bf16_base_trains_in_fp32() -> None:
    model = tiny_transformer(dtype=torch.bfloat16)
    parameters = add_adapter(model, TARGETS, 2, 2, seed=0)
    flow(model).float().pow(2).mean().backward()
    assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in parameters)


def test_target_modules_and_blocks() -> None:
    model = tiny_transformer()
    assert target_modules(model, TARGETS, [1]) == [f"transformer_blocks.1.{name}" for name in TARGETS]
    assert target_modules(model, ["attn.to_q"], [0, 3]) == [
        "transformer_blocks.0.attn.to_q",
        "single_transformer_blocks.1.attn.to_q",
    ]
    for targets, blocks in ((["attn.nothing"], None), (TARGETS, [2]), (["norm_q"], None)):
        with pytest.raises(ConfigError, match="choose other LoRA targets"):
            target_modules(model, targets, blocks)


def test_weights_go_over_to_another_adapter() -> None:
    source, target = with_adapter(), tiny_transformer()
    parameters = add_adapter(target, TARGETS, 3, 6.0, seed=1)
    identities = [id(parameter) for parameter in parameters]
    set_adapter_weights(target, adapter_weights(source))
    assert torch.equal(flow(target), flow(source))
    assert [id(parameter) for parameter in adapter_parameters(target)] == identities  # optimisers hold on to them
    with pytest.raises(LoraError, match="another rank"):
        set_adapter_weights(with_adapter(rank=4), adapter_weights(source))
    other = tiny_transformer()
    add_adapter(other, TARGETS[:1], 3, 6.0, seed=1)
    with pytest.raises(LoraError, match="other modules"):
        set_adapter_weights(other, adapter_weights(source))
    with pytest.raises(LoraError, match="already"):
        add_adapter(source, TARGETS, 3, 6.0, seed=1)


def test_a_file_with_mixed_ranks_and_alphas_is_applied(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(6)
    weights: LoraWeights = {
        name: (torch.randn(rank, 64, generator=generator), torch.randn(64, rank, generator=generator) * 0.1, alpha)
        for name, rank, alpha in (
            ("transformer_blocks.0.attn.add_q_proj", 1, 2.0),
            ("transformer_blocks.1.attn.to_k", 4, 1.0),
            ("single_transformer_blocks.0.attn.to_v", 2, 2.0),
        )
    }
    write_lora(tmp_path / "a.safetensors", weights, {})
    model = tiny_transformer()
    load_adapter(model, read_lora(tmp_path / "a.safetensors")[0])
    torch.testing.assert_close(flow(model), flow(merged(weights, 1.0)), rtol=1e-4, atol=1e-5)
    assert {name: alpha for name, (_, _, alpha) in adapter_weights(model).items()} == {
        name: alpha for name, (_, _, alpha) in weights.items()
    }
    foreign = {"transformer_blocks.9.attn.to_k": weights["transformer_blocks.1.attn.to_k"]}
    wide = {"transformer_blocks.0.attn.to_k": (torch.zeros(2, 65), torch.zeros(64, 2), 2.0)}
    for bad in (foreign, wide):
        with pytest.raises(LoraError, match="another Flux"):
            load_adapter(tiny_transformer(), bad)


# ---- the file


def some_weights() -> LoraWeights:
    return adapter_weights(with_adapter())


def test_file_has_our_keys_and_metadata_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "car.safetensors"
    metadata = make_metadata(
        concept={"phrase": "a car"},
        method="eraseanything",
        base="flux-3x3-0",
        config={"steps": 2},
        metrics={"loss": 0.5},
        version="1.2.3",
    )
    weights = some_weights()
    write_lora(path, weights, metadata)
    modules = [f"transformer.transformer_blocks.{i}.{target}" for i in (0, 1) for target in TARGETS]
    expected = {f"{module}.{end}" for module in modules for end in ("lora_A.weight", "lora_B.weight", "alpha")}
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == expected
        assert file.metadata() == {"format": "pt", **metadata}
    assert json.loads(read_metadata(path)[lora_format.KEY_CONCEPT]) == {"phrase": "a car"}
    back, _ = read_lora(path)
    assert all(
        torch.equal(a, c) and torch.equal(b, d) and x == y
        for (a, b, x), (c, d, y) in ((weights[name], back[name]) for name in weights)
    )
    write_lora(path, weights, metadata, torch.bfloat16)
    assert load_file(path)[f"{modules[0]}.lora_A.weight"].dtype == torch.bfloat16
    assert [entry.name for entry in path.parent.iterdir()] == ["car.safetensors"]


def test_the_same_lora_gives_the_same_bytes(tmp_path: Path) -> None:
    metadata = dict.fromkeys("zyxwvutsrqponm", "é" * 3)
    weights = some_weights()
    files = [
        write_lora(tmp_path / f"{i}.safetensors", weights, metadata) or tmp_path / f"{i}.safetensors" for i in "ab"
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert metadata.items() <= read_metadata(files[0]).items()


@pytest.mark.parametrize(
    ("error", "message"),
    [(OSError(errno.ENOSPC, "x"), "disk is full"), (PermissionError(errno.EACCES, "x"), "permissions")],
)
def test_a_failed_write_leaves_the_old_file(
    error: OSError, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "car.safetensors"
    write_lora(path, some_weights(), {"mine": "old"})

    def fail(_handle: int) -> None:  # by then the temporary file has been written
        raise error

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(LoraError, match=message):
        write_lora(path, some_weights(), {"mine": "new"})
    assert read_metadata(path)["mine"] == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["car.safetensors"]


def test_weights_that_must_not_be_written(tmp_path: Path) -> None:
    bad_number = {"m": (torch.full((2, 4), float("nan")), torch.zeros(4, 2), 2.0)}
    bad_shape = {"m": (torch.zeros(2, 4), torch.zeros(4, 3), 2.0)}
    for weights, message in ((bad_number, "undefined"), (bad_shape, "do not multiply"), ({}, "no LoRA weights")):
        with pytest.raises(LoraError, match=message):
            write_lora(tmp_path / "x.safetensors", weights, {})
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_ours_to_read(tmp_path: Path) -> None:
    """What files of others are read is told in tests/unit/test_lora_dialects.py."""
    path = tmp_path / "x.safetensors"
    a, b, module = torch.zeros(2, 4), torch.zeros(4, 2), "transformer_blocks.0.attn.to_q"
    pair = {f"transformer.{module}.lora_A.weight": a, f"transformer.{module}.lora_B.weight": b}
    save_file(pair | {"stray": a.clone()}, path)
    with pytest.raises(LoraError, match="'stray'"):
        read_lora(path)
    save_file(pair, path)
    assert read_lora(path)[0][module][2] == 2.0  # no alpha: the rank
    path.write_bytes(b"nothing")
    with pytest.raises(LoraError, match="not a readable"):
        read_lora(path)
    with pytest.raises(LoraError, match="is missing"):
        read_lora(tmp_path / "gone.safetensors")


def test_names_that_end_alike_are_told_apart() -> None:
    """The model's own proj_out and those of single blocks; blocks 1 and 11."""
    model = tiny_transformer()
    generator = torch.Generator().manual_seed(0)
    weights = {
        "proj_out": (torch.randn(2, 64, generator=generator), torch.randn(16, 2, generator=generator), 2.0),
        "single_transformer_blocks.1.proj_out": (
            torch.randn(3, 320, generator=generator),
            torch.randn(64, 3, generator=generator),
            1.0,
        ),
    }
    load_adapter(model, weights)
    torch.testing.assert_close(flow(model), flow(merged(weights, 1.0)), rtol=1e-4, atol=1e-4)
