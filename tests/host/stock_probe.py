"""Run by test_stock_files.py in a process that has the host on its path: loads transformer files as the host's MODEL.

Usage: stock_probe.py FOLDER. For every FOLDER/*.flux.safetensors adds to FOLDER/result.safetensors the weight of one
layer as the host computes with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from comfy.cli_args import args

args.cpu = True

import torch  # noqa: E402
from native_probe import pack_module  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


@torch.inference_mode()
def main(folder: Path) -> None:
    stock_model, out = pack_module("nodes.native").stock_model, {}
    for path in sorted(folder.glob("*.flux.safetensors")):
        model = stock_model(pack_module("training.models.source").FluxSource("files", transformer=str(path)))
        layer = model.model.diffusion_model.double_blocks[0].img_attn.qkv
        out[path.name.split(".")[0]] = layer.convert_weight(layer.weight).float().contiguous()
        del model, layer
    save_file(out, folder / "result.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
