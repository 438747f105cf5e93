"""The host's own objects from a FluxSource, against diffusers' pipeline and the engine: text, images, LoRA, files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scripts.host import SHIM_FOLDER
from tests.support.flux_models import demo_parts, fp32_source, pipeline, pipeline_images, psnr
from training.lora.adapter import adapter_weights, add_adapter, load_adapter
from training.lora.format import KEY_BASE, read_lora, write_lora
from training.models.loading import load_transformer
from training.models.sampling import generate
from training.models.source import FluxSource

PROMPT = "a car on a blue background"
LONG = "a cat next to a red car, " * 12  # more than the text encoders take
SEED = 5
STEPS = 7  # half the default, to save time


@pytest.fixture(scope="module")
def lora(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA in our format that changes images visibly."""
    model = load_transformer(fp32_source(demo_folder), "cpu")
    parameters = add_adapter(model, ["attn.add_q_proj", "attn.add_k_proj"], rank=4, alpha=8, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data.normal_(std=0.3, generator=generator)
    path = tmp_path_factory.mktemp("lora") / "test.safetensors"
    write_lora(path, adapter_weights(model), {})
    return path


@pytest.fixture(scope="module")
def native(demo_folder: Path, host_folder: Path, lora: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What native_probe.py made through the host: tensors, and under "facts" what it found."""
    folder = tmp_path_factory.mktemp("native")
    foreign = folder / "foreign.safetensors"
    write_lora(foreign, {"transformer_blocks.7.attn.add_q_proj": (torch.ones(2, 256), torch.ones(256, 2), 2.0)}, {})
    bases = {"same": fp32_source(demo_folder).fingerprint(), "other": "flux-3x3-0123456789abcdef", "unknown": None}
    for name, base in bases.items():
        write_lora(folder / f"{name}.safetensors", read_lora(lora)[0], {KEY_BASE: base} if base else {})
    request = {
        "bases": {name: str(folder / f"{name}.safetensors") for name in bases},
        "source": fp32_source(demo_folder).to_dict(),
        "prompt": PROMPT,
        "seed": SEED,
        "steps": STEPS,
        "long_prompt": LONG,
        "weighted_prompt": "a (car:1.3) on a blue background",
        "lora": str(lora),
        "foreign_lora": str(foreign),
    }
    (folder / "probe.json").write_text(json.dumps(request))
    paths = os.pathsep.join([str(SHIM_FOLDER), str(host_folder)])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "native_probe.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        **load_file(folder / "result.safetensors"),
        "facts": json.loads((folder / "result.json").read_text()),
        "transformer_file": folder / "native_transformer.safetensors",
    }


@pytest.fixture(scope="module")
def reference(demo_folder: Path, lora: Path) -> dict[str, torch.Tensor]:
    """FluxPipeline's images [H, W, 3] without and with the LoRA."""
    pipe = pipeline(demo_folder)

    def image() -> torch.Tensor:
        return pipeline_images(pipe, demo_folder, [PROMPT], [SEED], STEPS)[0].permute(1, 2, 0)

    base = image()
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
    return {"base": base, "lora": image()}


def test_text_nodes_give_diffusers_embeddings(native: dict, demo_folder: Path) -> None:
    embeds = demo_parts(demo_folder).text.encode([PROMPT, LONG])
    for name, index in (("", 0), ("_flux", 0), ("_long", 1)):  # plain, CLIPTextEncodeFlux, cut
        torch.testing.assert_close(native["t5" + name], embeds[index].t5, rtol=0, atol=1e-4)
        torch.testing.assert_close(native["pooled" + name], embeds[index].pooled, rtol=0, atol=1e-4)
    changed = (native["t5_weighted"] - native["t5"]).abs().amax(-1)[0] > 1e-3
    assert 1 <= changed.sum() <= 4  # the weight acts on its word's tokens alone


def test_images_agree_everywhere(native: dict, reference: dict, demo_folder: Path) -> None:
    engine = generate(demo_parts(demo_folder), PROMPT, SEED, steps=STEPS)[0].permute(1, 2, 0)
    assert psnr(engine, reference["base"]) >= 40
    assert psnr(native["exact"][0], reference["base"]) >= 40  # the host's sampler at the same sigmas
    assert psnr(native["ksampler"][0], reference["base"]) >= 40  # stock KSampler, euler, simple


def test_lora_renders_the_same_everywhere(native: dict, reference: dict, demo_folder: Path, lora: Path) -> None:
    assert psnr(reference["lora"], reference["base"]) < 30  # the LoRA does something
    parts = demo_parts(demo_folder)
    base, parts.transformer = parts.transformer, load_transformer(fp32_source(demo_folder), "cpu")
    try:
        load_adapter(parts.transformer, read_lora(lora)[0])
        engine = generate(parts, PROMPT, SEED, steps=STEPS)[0].permute(1, 2, 0)
    finally:
        parts.transformer = base
    assert psnr(engine, reference["lora"]) >= 40
    assert psnr(native["lora_stock"][0], reference["lora"]) >= 40  # comfy.sd.load_lora_for_models
    assert psnr(native["lora_ours"][0], reference["lora"]) >= 40  # Apply Erasure LoRA


def test_every_module_of_the_lora_is_patched(native: dict, lora: Path) -> None:
    modules = len(read_lora(lora)[0])
    assert native["facts"]["lora_patches"] == modules
    assert native["facts"]["unknown_keys"] == []
    assert native["facts"]["strength_zero_is_base"] is True
    assert "another Flux" in native["facts"]["foreign"]


def test_a_lora_of_another_base_is_told(native: dict, demo_folder: Path) -> None:
    base, warnings = native["facts"]["base"], native["facts"]["warnings"]
    assert base == fp32_source(demo_folder).fingerprint()
    assert warnings["same"] == warnings["unknown"] == warnings["in fp8"] == ""
    for part in ("other.safetensors was trained on another Flux", "flux-3x3-0123456789abcdef", base, "compare before"):
        assert part in warnings["other"]
    assert native["facts"]["base in e5m2"] is None  # rounded otherwise: it cannot be told


def test_vae_encodes_as_diffusers_does(native: dict, demo_folder: Path) -> None:
    vae = demo_parts(demo_folder).vae
    with torch.no_grad():
        expected = vae.encode(native["exact"].permute(0, 3, 1, 2) * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(native["encoded"], expected, rtol=0, atol=1e-4)


def test_a_native_single_file_is_the_same_transformer(native: dict, demo_folder: Path) -> None:
    source = fp32_source(demo_folder)
    single = FluxSource("files", transformer=str(native["transformer_file"]), precision="fp32")
    assert single.fingerprint() == source.fingerprint()
    ours, theirs = load_transformer(single, "cpu").state_dict(), load_transformer(source, "cpu").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_compare_renders_what_ksampler_renders(native: dict) -> None:
    """The Compare node's picture holds the images of before and after, with a label for each prompt and seed."""
    before, after = native["compare_before"], native["compare_after"]
    assert psnr(before[0], native["exact"][0]) >= 40
    assert psnr(after[0], native["lora_ours"][0]) >= 40
    picture = native["compare_picture"][0]
    height, width = before.shape[1:3]
    # every image is in the picture, unscaled
    quantised = [(image * 255).round() / 255 for images in (before, after) for image in images]
    for image in quantised:
        places = picture.unfold(0, height, 1).unfold(1, width, 1)[..., 0, height // 2, :]  # one line of red values
        assert ((places - image[height // 2, :, 0]).abs().amax(-1) < 1e-3).any()
