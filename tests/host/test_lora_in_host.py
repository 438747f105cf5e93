"""LoRA files of every dialect, our conversions and a merge of them through the host's own loader: the same change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from scripts.host import SHIM_FOLDER
from tests.support.loras import diffusers_dialects, native_dialects, native_lora, random_lora, relative_error
from training.lora.files import convert, merge_files
from training.lora.format import open_lora

HIDDEN = 256  # two heads of 128: the host's Flux has no other head width
CONFIG = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 32,
    "patch_size": 1,
    "vec_in_dim": 64,
    "context_in_dim": 64,
    "hidden_size": HIDDEN,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 3,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
}
# the host's final layer is patch_size² · out_channels high, which is no multiple of the hidden size here
NATIVE = native_lora(hidden=HIDDEN, without=("final_layer.linear",))
DIFFUSERS = random_lora(
    3, alpha=2.0, targets=("attn.to_out.0", "attn.add_k_proj"), single=("attn.to_k",), hidden=HIDDEN
)
FILES = {**native_dialects(NATIVE), **diffusers_dialects(DIFFUSERS)}


def stem(dialect: str) -> str:
    return dialect.replace(", ", "-").replace(".", "_")


@pytest.fixture(scope="module")
def changes(host_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """File stem → native weight → change in the host; under "unknown" the keys that it did not load."""
    folder = tmp_path_factory.mktemp("dialects")
    for dialect, tensors in FILES.items():
        theirs, ours = (folder / f"{stem(dialect)}{which}.lora.safetensors" for which in ("", "-ours"))
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, theirs)
        assert open_lora(theirs).host_format
        made = folder / f"{stem(dialect)}.safetensors"
        convert(theirs, made)
        made.rename(ours)
    sources = [folder / f"{stem(dialect)}.lora.safetensors" for dialect in ("kohya", "diffusers")]
    merge_files(sources, folder / "merged.safetensors", "sum", weights=[1.0, -0.5])
    (folder / "merged.safetensors").rename(folder / "merged.lora.safetensors")
    (folder / "probe.json").write_text(json.dumps({"config": CONFIG}))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "lora_probe.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SHIM_FOLDER), str(host_folder)])},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = {
        path.name.removesuffix(".dense.safetensors"): load_file(path) for path in folder.glob("*.dense.safetensors")
    }
    double = {name: {key: value.double() for key, value in change.items()} for name, change in found.items()}
    return {**double, "unknown": json.loads((folder / "result.json").read_text())}


@pytest.mark.parametrize("dialect", FILES)
def test_the_host_reads_both_alike(dialect: str, changes: dict) -> None:
    theirs, ours = changes[stem(dialect)], changes[stem(dialect) + "-ours"]
    assert theirs.keys() == ours.keys() and theirs
    assert relative_error(ours, theirs) < 1e-6
    assert changes["unknown"][f"{stem(dialect)}.lora.safetensors"] == []
    assert changes["unknown"][f"{stem(dialect)}-ours.lora.safetensors"] == []


def test_the_host_reads_a_merge_as_the_stack(changes: dict) -> None:
    stack = dict(changes["kohya"])
    for name, change in changes["diffusers"].items():
        stack[name] = stack.get(name, 0) - 0.5 * change
    assert relative_error(changes["merged"], stack) < 1e-5
    assert changes["unknown"]["merged.lora.safetensors"] == []
