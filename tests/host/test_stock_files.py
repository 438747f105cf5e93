"""Transformer files of Flux.1's width, the only one that it knows, through the host's own loaders, to which Flux to
MODEL / CLIP / VAE hands them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file

from scripts.host import SHIM_FOLDER
from tests.support import flux_files as made

LAYER = "double_blocks.0.img_attn.qkv"
SCALE = 2.0**-7


@pytest.fixture(scope="module")
def fp8() -> made.State:
    """A Flux of one double and one single block, empty but for one layer's weight."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=128,
            num_attention_heads=24,
            joint_attention_dim=4096,
            pooled_projection_dim=768,
            guidance_embeds=True,
        )
    zeros = {name: torch.zeros(t.shape, dtype=torch.float8_e4m3fn) for name, t in model.state_dict().items()}
    state = {name: t if t.ndim == 2 else t.bfloat16() for name, t in made.native_transformer(zeros).items()}
    numbers = torch.randn(9216, 3072, generator=torch.Generator().manual_seed(0))
    return {**state, f"{LAYER}.weight": numbers.to(torch.float8_e4m3fn)}


def test_scaled_fp8_means_the_same_to_the_host(fp8: made.State, host_folder: Path, tmp_path: Path) -> None:
    layers = [name.removesuffix(".weight") for name, tensor in fp8.items() if made.is_quantised(name, tensor)]
    one = torch.tensor(SCALE)
    say = made.json_bytes({"format": "float8_e4m3fn"})
    files = {
        "marked": made.prefixed(
            {
                **fp8,
                "scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn),
                **{f"{layer}.scale_weight": one.clone() for layer in layers},
            },
            "diffusion_model.",
        ),
        "told": made.prefixed(
            {
                **fp8,
                **{f"{layer}.weight_scale": one.clone() for layer in layers},
                **{f"{layer}.comfy_quant": say.clone() for layer in layers},
            },
            "model.diffusion_model.",
        ),
    }
    for name, state in files.items():
        made.write(tmp_path / f"{name}.flux.safetensors", state)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "stock_probe.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SHIM_FOLDER), str(host_folder)])},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found, numbers = load_file(tmp_path / "result.safetensors"), fp8[f"{LAYER}.weight"].float()
    assert found.keys() == files.keys()
    for name, weight in found.items():
        assert torch.equal(weight, numbers * SCALE), name  # a power of two: exact in every number format
