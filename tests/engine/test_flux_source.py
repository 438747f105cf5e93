"""FluxSource: JSON, fingerprints, and one clear sentence for every way in which files can be wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.flux_files import whole_flux
from training.errors import SourceError
from training.models.source import FluxSource, grid_of, parameter_count
from training.models.variants import FLUX_DEV, variant_of
from training.models.weights import read_header


def copy_of(demo: Path, target: Path) -> Path:
    """A copy of the demo model whose weights are links (they are only read)."""
    for path in demo.rglob("*"):
        place = target / path.relative_to(demo)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif path.suffix == ".safetensors":
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    return target


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])


def replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


WEIGHTS = "diffusion_pytorch_model.safetensors"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no model_index": (lambda f: (f / "model_index.json").unlink(), "model_index.json is missing"),
    "other pipeline": (lambda f: edit(f / "model_index.json", _class_name="SD3Pipeline"), "not a Flux model"),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "lacks its folder vae"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer_2"), "lacks its folder tokenizer_2"),
    "no weights": (lambda f: (f / "transformer" / WEIGHTS).unlink(), "transformer has no .safetensors weights"),
    "no config": (lambda f: (f / "text_encoder" / "config.json").unlink(), "config.json is missing"),
    "broken config": (lambda f: (f / "vae" / "config.json").write_text("{"), "cannot be read as JSON"),
    "list as config": (lambda f: (f / "vae" / "config.json").write_text("[]"), "holds no settings"),
    "half a download": (lambda f: truncate(f / "transformer" / WEIGHTS), "incomplete"),
    "a text file": (lambda f: replace(f / "vae" / WEIGHTS, b"not weights at all" * 9), "not a safetensors file"),
    "an empty file": (lambda f: replace(f / "vae" / WEIGHTS, b""), "not a safetensors file"),
    "missing shard": (
        lambda f: (f / "transformer" / f"{WEIGHTS}.index.json").write_text(
            '{"weight_map": {"a": "part-2.safetensors"}}'
        ),
        "lacks part-2.safetensors",
    ),
    "other depth": (lambda f: edit(f / "transformer" / "config.json", num_layers=4), "transformer_blocks.3"),
    "other width": (lambda f: edit(f / "transformer" / "config.json", num_attention_heads=3), "different models"),
    "config lacks a key": (
        lambda f: (f / "transformer" / "config.json").write_text('{"num_layers": 3}'),
        "lacks 'num_single_layers'",
    ),
    "other T5": (lambda f: edit(f / "text_encoder_2" / "config.json", d_model=64), "text_encoder_2 \\(width 64\\)"),
    "other CLIP": (lambda f: edit(f / "text_encoder" / "config.json", hidden_size=768), "needs 128"),
    "other VAE": (lambda f: edit(f / "vae" / "config.json", latent_channels=4), "vae \\(width 16\\)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_one_sentence(case: str, demo_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(demo_folder, tmp_path / "model")
    FluxSource("diffusers", str(folder)).validate()  # whole before it is broken
    breaking, message = BROKEN[case]
    breaking(folder)
    with pytest.raises(SourceError, match=message) as caught:
        FluxSource("diffusers", str(folder)).validate()
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence and str(tmp_path) not in sentence


@pytest.mark.parametrize("folder", ["", "/nowhere/at/all"])
def test_a_folder_that_is_not_there(folder: str) -> None:
    with pytest.raises(SourceError, match="missing"):
        FluxSource("diffusers", folder).validate()


def test_json_round_trip() -> None:
    source = FluxSource("files", transformer="a", clip_l="b", t5="c", vae="d", precision="bf16")
    assert FluxSource.from_dict(json.loads(json.dumps(source.to_dict()))) == source
    for bad in ({}, {"kind": "diffusers", "path": "x"}, {"kind": "diffusers", "folder": 3}):
        with pytest.raises(SourceError, match="malformed"):
            FluxSource.from_dict(bad)


def test_unknown_precision_and_kind(demo_folder: Path) -> None:
    with pytest.raises(SourceError, match="fp4"):
        FluxSource("diffusers", str(demo_folder), precision="fp4").validate()
    with pytest.raises(SourceError, match="checkpoint"):
        FluxSource("checkpoint").validate()


def test_fingerprint_knows_the_base(demo_folder: Path, tmp_path: Path) -> None:
    original = FluxSource("diffusers", str(demo_folder)).fingerprint()
    folder = copy_of(demo_folder, tmp_path / "model")
    weights = folder / "transformer" / WEIGHTS
    tensors = {name: tensor.float() for name, tensor in load_file(weights).items()}

    def rewritten() -> str:
        weights.unlink()
        save_file(tensors, weights)
        return FluxSource("diffusers", str(folder)).fingerprint()

    if all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in tensors.values()):
        assert rewritten() == original  # the same weights in fp32
    tensors["proj_out.bias"][0] += 1
    assert rewritten() != original


# ---- single files; test_flux_files.py has their layouts


@pytest.fixture
def files(demo_folder: Path, tmp_path: Path) -> dict[str, str]:
    return whole_flux(tmp_path, demo_folder)


def test_single_files_are_accepted_and_read_off(files: dict[str, str]) -> None:
    source = FluxSource("files", **files)
    source.validate()
    config = source.transformer_config()
    assert (config["num_layers"], config["num_single_layers"], config["num_attention_heads"]) == (2, 2, 1)
    assert config["guidance_embeds"] and variant_of(source) == FLUX_DEV


@pytest.mark.parametrize("name", ["transformer", "clip_l", "t5", "vae"])
def test_each_single_file_must_be_there_and_be_what_it_is_for(name: str, files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"choose a file for {name}"):
        FluxSource("files", **{**files, name: ""}).validate()
    with pytest.raises(SourceError, match=r"gone\.safetensors is missing"):
        FluxSource("files", **{**files, name: str(tmp_path / "gone.safetensors")}).validate()
    other = "vae" if name == "t5" else "t5"
    with pytest.raises(SourceError, match=rf"{other}\.safetensors is a .*: choose a .* for {name}"):
        FluxSource("files", **{**files, name: files[other]}).validate()
    save_file({"lora_A.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(SourceError, match="is something else"):
        FluxSource("files", **{**files, name: str(tmp_path / "lora.safetensors")}).validate()


@pytest.mark.parametrize(
    ("part", "name", "shape", "message"),
    [
        ("t5", "encoder.block.0.layer.0.SelfAttention.q.weight", (32, 24), r"t5\.safetensors \(width 24\)"),
        (
            "clip_l",
            "text_model.encoder.layers.0.self_attn.q_proj.weight",
            (32, 32),
            r"clip_l\.safetensors \(width 32\)",
        ),
        ("vae", "decoder.conv_in.weight", (64, 4, 3, 3), r"vae\.safetensors \(width 16\)"),
        ("transformer", "img_in.weight", (96, 64), "wrong shape"),
        ("transformer", "single_blocks.0.linear2.weight", (128, 512), r"single_transformer_blocks\.0\.proj_out.*shape"),
    ],
)
def test_single_files_of_different_models(
    part: str, name: str, shape: tuple[int, ...], message: str, files: dict[str, str]
) -> None:
    save_file({**load_file(files[part]), name: torch.zeros(shape)}, files[part])
    with pytest.raises(SourceError, match=message):
        FluxSource("files", **files).validate()


def test_header_of_a_file(demo_folder: Path, tmp_path: Path) -> None:
    path = demo_folder / "transformer" / WEIGHTS
    tensors = load_file(path)
    shapes = read_header(path)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert parameter_count(shapes) == sum(tensor.numel() for tensor in tensors.values())
    if os.geteuid() != 0:  # root reads everything
        locked = tmp_path / "locked.safetensors"
        locked.write_bytes(b"")
        locked.chmod(0)
        with pytest.raises(SourceError, match="permissions"):
            read_header(locked)


def test_image_sizes() -> None:
    assert grid_of(128, 64) == (4, 8)
    for size in ((120, 128), (0, 128), (-16, 16)):
        with pytest.raises(SourceError, match="multiples of 16"):
            grid_of(*size)
