"""Every layout of the table is read as what its trainer meant, and survives conversion, merging, baking and diffusers;
what cannot be read is refused with the true reason."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.lora_layouts import DEPTH, HIDDEN, LATENT, NATIVE, OUT, POOLED, READ, SINGLE, TEXT, Layout, unstacked
from tests.support.lora_refusals import REFUSED
from tests.support.loras import dense, relative_error
from training.errors import LoraError
from training.lora.bake import bake
from training.lora.files import convert, describe, merge_files
from training.lora.format import open_lora


def test_the_table_is_as_large_as_it_has_to_be() -> None:
    assert len(READ) >= 60 and len(REFUSED) >= 40


@pytest.mark.parametrize("name", READ)
def test_reading(name: str, tmp_path: Path) -> None:
    layout = READ[name]
    file = open_lora(layout.save(tmp_path))
    assert relative_error(dense(file.weights), layout.meant) < layout.tolerance
    said = "\n".join(file.notes)
    assert all(part in said for part in layout.says), said
    assert bool(file.notes) == bool(layout.says), said  # nothing is told where nothing was left out or changed
    if any("alpha was read from" in part for part in layout.says):
        assert not file.host_format  # ComfyUI's Load LoRA would take another alpha
    assert tuple(describe(tmp_path / f"{layout.stem}.safetensors")["notes"]) == file.notes


@pytest.mark.parametrize("name", READ)
def test_conversion_in_diffusers(name: str, tmp_path: Path) -> None:
    """What is converted means the same to FluxPipeline's own loader."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    layout, ours = READ[name], tmp_path / "ours.safetensors"
    report = convert(layout.save(tmp_path / "theirs"), ours)
    assert all(any(part in note for note in report["notes"]) for part in layout.says)
    assert open_lora(ours).notes == () and open_lora(ours).host_format
    model = FluxTransformer2DModel(
        in_channels=LATENT,
        out_channels=OUT,
        num_layers=DEPTH,
        num_single_layers=SINGLE,
        attention_head_dim=HIDDEN,
        num_attention_heads=1,
        joint_attention_dim=TEXT,
        pooled_projection_dim=POOLED,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )
    state, alphas, metadata = FluxPipeline.lora_state_dict(ours, return_alphas=True, return_lora_metadata=True)
    FluxPipeline.load_lora_into_transformer(state, alphas, model, adapter_name="x", metadata=metadata)
    found = {
        module: layer.get_delta_weight("x").double()
        for module, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight") and layer.lora_B["x"].weight.any()
    }
    assert relative_error(found, layout.meant) < max(layout.tolerance, 1e-6)


@pytest.mark.parametrize("name", READ)
def test_merging_and_baking(name: str, tmp_path: Path) -> None:
    layout = READ[name]
    path = layout.save(tmp_path / "theirs")
    report = merge_files([path], tmp_path / "merged.safetensors", "concat")
    assert all(any(part in note for note in report["notes"]) for part in layout.says)
    assert relative_error(dense(open_lora(tmp_path / "merged.safetensors").weights), layout.meant) < 2e-6
    blank = {f"{layer}.weight": torch.zeros(outputs, inputs) for layer, (inputs, outputs, _) in NATIVE.items()}
    save_file(blank, tmp_path / "flux.safetensors")
    report = bake(tmp_path / "flux.safetensors", [path], tmp_path / "baked.safetensors")
    assert all(any(part in note for note in report["notes"]) for part in layout.says)
    baked = {
        key.removesuffix(".weight"): value.double() for key, value in load_file(tmp_path / "baked.safetensors").items()
    }
    assert relative_error(unstacked(baked), layout.meant) < 1e-6


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, tmp_path: Path) -> None:
    layout = REFUSED[name]
    path = layout.save(tmp_path)
    with pytest.raises(LoraError) as error:
        open_lora(path)
    sentence = str(error.value)
    assert all(part in sentence for part in layout.says), sentence
    assert sentence.startswith("lora.safetensors ") and sentence.endswith(".") and "\n" not in sentence


def lokr_of(hidden: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A LoKr of full rank on one layer, with singular values that fall, and its change."""
    generator = torch.Generator().manual_seed(0)
    w1, w2 = (torch.randn(size, size, generator=generator) for size in (8, hidden // 8))
    falling = torch.logspace(0, -3, hidden // 8)
    stem = "lora_unet_double_blocks_0_img_attn_proj"
    return {f"{stem}.lokr_w1": w1, f"{stem}.lokr_w2": w2 * falling}, torch.kron(w1.double(), (w2 * falling).double())


@pytest.mark.parametrize("kind", ["LoKr", "whole difference", "LoHa"])
def test_what_exceeds_the_highest_rank_is_cut_and_the_error_is_told(kind: str, tmp_path: Path) -> None:
    hidden, stem = 768, "lora_unet_double_blocks_0_img_attn_proj"
    tensors, change = lokr_of(hidden)
    if kind == "whole difference":
        tensors = {f"{stem}.diff": change.float()}
    if kind == "LoHa":
        generator = torch.Generator().manual_seed(1)
        a = torch.randn(4, hidden, 20, generator=generator)
        falling = torch.logspace(0, -2, 20)
        parts = {"w1_a": a[0] * falling, "w1_b": a[1].T, "w2_a": a[2] * falling, "w2_b": a[3].T}
        tensors = {f"{stem}.hada_{part}": value for part, value in parts.items()}
        change = (parts["w1_a"].double() @ parts["w1_b"].double()) * (parts["w2_a"].double() @ parts["w2_b"].double())
    values = torch.linalg.svdvals(change)
    best = float((values[256:].square().sum() / values.square().sum()).sqrt())
    file = open_lora(Layout(tensors, None).save(tmp_path))
    error = relative_error(dense(file.weights), {"transformer_blocks.0.attn.to_out.0": change})
    assert best > 1e-4 and best * 0.999 < error < best * 1.02  # Eckart and Young: no LoRA of rank 256 is nearer
    (note,) = file.notes
    assert f"rank up to 256, which leaves out {error:.2g} of their change" in note and kind in note


def test_another_loader_is_recommended_where_much_is_left_out(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    stem = "lora_unet_double_blocks_0_img_attn_proj"
    tensors = {f"{stem}.lokr_w{i}": torch.randn(28, 28, generator=generator) for i in (1, 2)}
    (note,) = open_lora(Layout(tensors, None).save(tmp_path)).notes
    assert "ComfyUI's own Load LoRA applies such files whole" in note


def test_the_settings_of_a_neighbour_are_not_used(tmp_path: Path) -> None:
    """In a folder of many LoRAs nobody can tell whose adapter_config.json is."""
    layout = READ["adapter_config.json beside a lone file"]
    path = layout.save(tmp_path)
    alone = open_lora(path)
    (tmp_path / "neighbour.safetensors").write_bytes(path.read_bytes())
    beside = open_lora(path)
    assert alone.notes and not beside.notes
    module = next(iter(alone.weights))
    assert alone.weights[module][2] == 2 and beside.weights[module][2] == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"r": 4}',
        '{"r": "4", "lora_alpha": 1}',
        '{"r": 0, "lora_alpha": 1}',
        '{"r": 4, "lora_alpha": NaN}',
        '{"r": 4, "lora_alpha": 1, "rank_pattern": []}',
        '{"r": 4, "lora_alpha": 1, "rank_pattern": [1]}',
    ],
)
def test_settings_that_cannot_be_read_count_as_none(text: str, tmp_path: Path) -> None:
    path = READ["PEFT"].save(tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    file = open_lora(path)
    assert file.notes == () and relative_error(dense(file.weights), READ["PEFT"].meant) < 1e-6


def test_a_pattern_that_would_take_forever_is_passed_over(tmp_path: Path) -> None:
    layout = READ["save_lora_weights"]
    values = {"r": 4, "lora_alpha": 16, "alpha_pattern": {r"(\w+\.?)+x": 1, "(": 2}}
    path = Layout(layout.tensors, None, config=values).save(tmp_path)
    assert relative_error(dense(open_lora(path).weights), layout.meant) < 1e-6


def test_a_name_that_would_take_forever_is_passed_over(tmp_path: Path) -> None:
    names = ["lora_unet_" * 28 + "x.alpha", "x" + "_" * 50_000, "transformer." * 5_000 + ".lora_A.weight"]
    path = Layout({name: torch.zeros(1) for name in names}, None).save(tmp_path)
    began = time.monotonic()
    with pytest.raises(LoraError, match="not a Flux LoRA"):
        open_lora(path)
    assert time.monotonic() - began < 5


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(LoraError, match="no regular file"):
        open_lora(tmp_path / "pipe.safetensors")
