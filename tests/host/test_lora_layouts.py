"""Every layout of the table through the code of Apply Erasure LoRA in the host: the change that its trainer meant, all
the time and under conditions; or the sentence that says why not."""

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
from tests.support.lora_layouts import DEPTH, HIDDEN, LATENT, NATIVE, OUT, POOLED, READ, SINGLE, TEXT, unstacked
from tests.support.lora_refusals import REFUSED
from tests.support.loras import relative_error

CONFIG = {
    "image_model": "flux",
    "in_channels": LATENT,
    "out_channels": OUT,
    "patch_size": 1,
    "vec_in_dim": POOLED,
    "context_in_dim": TEXT,
    "hidden_size": HIDDEN,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": DEPTH,
    "depth_single_blocks": SINGLE,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
}
START = "diffusion_model."


@pytest.fixture(scope="module")
def found(host_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict[str, torch.Tensor]]:
    """What the probe wrote: sentences or numbers of patches, and changes of weights."""
    folder = tmp_path_factory.mktemp("layouts")
    files = {
        name: str(layout.save(folder / str(number))) for number, (name, layout) in enumerate((READ | REFUSED).items())
    }
    (folder / "probe.json").write_text(json.dumps({"config": CONFIG, "files": files}))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "layouts_probe.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SHIM_FOLDER), str(host_folder)])},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "result.json").read_text()), load_file(folder / "dense.safetensors")


@pytest.mark.parametrize("kind", ["always", "some"])
@pytest.mark.parametrize("name", READ)
def test_the_host_gets_what_was_meant(name: str, kind: str, found: tuple[dict, dict[str, torch.Tensor]]) -> None:
    result, dense = found
    assert isinstance(result[name], int), result[name]
    start = f"{kind}/{name}/{START}"
    changes = {
        key.removeprefix(start).removesuffix(".weight"): value.double()
        for key, value in dense.items()
        if key.startswith(start)
    }
    meant, layout = {}, READ[name]
    for layer, (inputs, outputs, _) in NATIVE.items():
        meant |= unstacked({layer: changes.pop(layer, torch.zeros(outputs, inputs, dtype=torch.float64))})
    assert not changes  # no other weight was touched
    assert relative_error(meant, layout.meant) < layout.tolerance


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, found: tuple[dict, dict[str, torch.Tensor]]) -> None:
    sentence = found[0][name]
    assert isinstance(sentence, str) and all(part in sentence for part in REFUSED[name].says)


def test_a_host_that_does_not_take_all_patches_is_no_success(found: tuple[dict, dict[str, torch.Tensor]]) -> None:
    # 17 native layers are 24 of diffusers', one of which, the final adaLN, has its halves swapped
    assert "placed 24 of the 25 patches of lora.safetensors" in found[0]["forgetful"]
