"""Merged and baked files in use: diffusers renders them like the stacked LoRAs; concept inputs of the demo model; the
command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import training.concept_inputs as collecting
from tests.support.flux_models import TINY_GRID, demo_parts, fp32_source, pipeline, pipeline_images, psnr, tiny_inputs
from tests.support.flux_models import tiny_transformer as tiny
from tests.support.loras import dense, random_lora, relative_error, weighted
from training.concepts import Concept
from training.flow import Flow
from training.lora.__main__ import main
from training.lora.adapter import add_adapter
from training.lora.bake import bake
from training.lora.files import merge_files
from training.lora.format import KEY_BASE, KEY_CONCEPT, read_lora, write_lora
from training.lora.inputs import input_site, inputs_path, read_inputs
from training.lora.merge import Source, merge
from training.models.loading import load_transformer

PROMPT = "a car on a blue background"
SEED = 5
STEPS = 3  # few, to save time
STACK = [1.0, -0.6]
CAR = Concept("car", template="a {}", irrelevant=("house",), preserve=("a house", "a tree"))


@pytest.fixture(scope="module")
def loras(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two LoRAs of other ranks, alphas, targets and number types that change images visibly."""
    hidden = demo_parts(demo_folder).transformer.inner_dim
    folder = tmp_path_factory.mktemp("loras")
    first = random_lora(0, rank=4, alpha=0.2, blocks=3, hidden=hidden)
    targets = ("attn.add_k_proj", "attn.to_q")
    second = random_lora(1, rank=16, alpha=0.5, targets=targets, blocks=2, hidden=hidden, single=("attn.to_k",))
    paths = [folder / "first.safetensors", folder / "second.safetensors"]
    metadata = {KEY_CONCEPT: json.dumps(CAR.to_dict()), KEY_BASE: fp32_source(demo_folder).fingerprint()}
    write_lora(paths[0], first, metadata)
    write_lora(paths[1], second, {}, torch.bfloat16)
    return paths


@pytest.fixture(scope="module")
def images(loras: list[Path], demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """FluxPipeline's image without LoRA, with both stacked, and with each kind of file made of the two."""
    folder = tmp_path_factory.mktemp("merged")

    def image(pipe) -> torch.Tensor:
        return pipeline_images(pipe, demo_folder, [PROMPT], [SEED], STEPS)

    pipe = pipeline(demo_folder)
    found = {"base": image(pipe)}
    for name, path in zip("ab", loras, strict=True):
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    pipe.set_adapters(["a", "b"], STACK)
    found["stacked"] = image(pipe)
    for mode, settings in {"sum": {}, "concat": {}, "fusion": {}, "svd": {"error": 1e-4}}.items():
        pipe.unload_lora_weights()
        merge_files(loras, folder / f"{mode}.safetensors", mode, weights=STACK, **settings)
        pipe.load_lora_weights(str(folder), weight_name=f"{mode}.safetensors")
        found[mode] = image(pipe)
    bake(demo_folder, loras, folder / "baked", strengths=STACK)
    found["baked"] = image(pipeline(folder / "baked"))
    return found


@pytest.mark.parametrize("what", ["sum", "concat", "fusion", "svd", "baked"])
def test_one_file_renders_as_the_stack(what: str, images: dict[str, torch.Tensor]) -> None:
    assert psnr(images["stacked"], images["base"]) < 25  # the LoRAs do something
    assert psnr(images[what], images["stacked"]) >= 45


def test_baked_folder_is_a_source_of_its_own(loras: list[Path], demo_folder: Path, tmp_path: Path) -> None:
    bake(demo_folder / "transformer", loras[:1], tmp_path / "transformer")
    state = load_transformer(fp32_source(demo_folder), "cpu").state_dict()
    baked = load_file(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    changes = dense(read_lora(loras[0])[0])
    stored = load_file(demo_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert baked.keys() == state.keys()
    for name, tensor in baked.items():
        change = changes.get(name.removesuffix(".weight"))
        if change is None:
            assert torch.equal(tensor, stored[name])
        else:
            expected = stored[name].double() + change
            torch.testing.assert_close(tensor.double(), expected, rtol=2**-7, atol=1e-6)


# ---- concept inputs


def tiny_flow(levels: list[float]) -> Flow:
    return Flow(tiny(), torch.tensor(levels), TINY_GRID, 3.5)


def test_second_moments_are_those_of_the_layers_inputs() -> None:
    """Against the inputs computed by hand: the first block's text tokens after its norm."""
    flow = tiny_flow([1.0, 0.0])
    _, _, embeds = tiny_inputs()
    names = [f"transformer_blocks.0.attn.{x}" for x in ("add_k_proj", "add_q_proj", "to_k")]
    length = embeds.t5.shape[1]
    tokens = torch.rand(2, length, generator=torch.Generator().manual_seed(0))
    found = collecting.second_moments(flow, names, embeds, tokens, [1, 2], student=False)
    assert found.keys() == {input_site(name) for name in names}
    model = flow.transformer
    with torch.no_grad():
        time = torch.full((2,), 1000.0)
        temb = model.time_text_embed(time, torch.full((2,), 3500.0), embeds.pooled)
        x, *_ = model.transformer_blocks[0].norm1_context(model.context_embedder(embeds.t5), emb=temb)
    expected = torch.einsum("bli,bl,blj->ij", x.double(), tokens.double(), x.double()) / 2
    torch.testing.assert_close(found[names[1]].double(), expected, rtol=1e-4, atol=1e-5)
    # nothing of it stays on the layers (the blocks keep the hook of the attention's recorders)
    blocks = {*model.transformer_blocks, *model.single_transformer_blocks}
    assert not any(module._forward_pre_hooks for module in model.modules() if module not in blocks)


def test_second_moments_of_the_student_are_taken_with_the_lora_on() -> None:
    flow = tiny_flow([1.0, 0.5, 0.0])
    parameters = add_adapter(flow.transformer, ["attn.add_q_proj", "attn.add_k_proj"], 2, 2.0, seed=0)
    for parameter in parameters:
        parameter.data.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    _, _, embeds = tiny_inputs()
    tokens = torch.full((2, embeds.t5.shape[1]), 1 / embeds.t5.shape[1])
    name = "transformer_blocks.1.attn.add_q_proj"  # reads what the first block's LoRA has changed
    base, student = (
        collecting.second_moments(flow, [name], embeds, tokens, [1, 2], student=student)[name]
        for student in (False, True)
    )
    assert float((base - student).norm() / base.norm()) > 1e-3


def test_concept_inputs_of_the_demo_model(
    loras: list[Path], demo_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(collecting, "PROMPTS", {"concept": 2, "keep": 3})
    monkeypatch.setattr(collecting, "STEPS", 2)
    path = tmp_path / "car.safetensors"
    path.write_bytes(loras[0].read_bytes())
    arguments = ["--source", str(demo_folder), "--precision", "fp32", "--device", "cpu"]
    assert collecting.main([str(path), *arguments]) == 0
    inputs = read_inputs(inputs_path(path))
    weights, _ = read_lora(path)
    assert inputs.concept.keys() == inputs.keep.keys() == {input_site(name) for name in weights}
    assert json.loads(inputs.metadata[KEY_CONCEPT])["phrase"] == "car"
    report = merge([Source("car", weights, 1.0, inputs)], "fusion").report
    assert report["notes"] == [] and report["sources"][0]["basis"] == "inputs"
    assert 0.3 < report["sources"][0]["kept"] <= 1.001  # little but the preserved part is given up
    free = merge([Source("car", weights, 1.0, inputs)], "fusion", preserve=0.0).report
    assert free["sources"][0]["kept"] == pytest.approx(1, abs=2e-3)
    # a LoRA that names no concept has no inputs to collect
    assert collecting.main([str(loras[1]), *arguments]) == 1


# ---- the command line


def run(capsys: pytest.CaptureFixture, *arguments: str | Path) -> dict:
    assert main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_commands(loras: list[Path], tmp_path: Path, demo_folder: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "merged.safetensors"
    result = run(capsys, "merge", "--mode", "sum", "--out", out, "--weights=1,-0.6", *loras)
    expected = weighted([read_lora(path)[0] for path in loras], STACK)
    assert relative_error(dense(read_lora(out)[0]), expected) < 1e-6
    assert result["file"] == str(out) and result["seconds"] >= 0 and len(result["sources"]) == 2
    shown = run(capsys, "info", loras[0])
    assert shown["concept"] == "car" and shown["rank"] == 4 and shown["tensors"] == 18 and shown["host_format"] is True
    again = run(capsys, "merge", "--mode", "svd", "--rank", "2", "--number", "--out", out, loras[0].parent)
    assert again["file"].endswith("merged (2).safetensors") and again["rank"] == 2
    assert run(capsys, "convert", "--out", tmp_path / "c.safetensors", loras[1])["dtypes"] == ["bfloat16"]
    baked = run(capsys, "bake", "--source", demo_folder / "transformer", "--out", tmp_path / "baked", loras[0])
    assert baked["changed"] == 6 and (tmp_path / "baked" / "config.json").is_file()
    for arguments in (["merge", "--mode", "sum", "--out", out, *loras], ["info", tmp_path / "gone.safetensors"]):
        assert main([str(argument) for argument in arguments]) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1


def test_module_runs(loras: list[Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "training.lora", "info", str(loras[1])],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["rank"] == 16
