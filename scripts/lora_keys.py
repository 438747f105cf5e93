"""Whether diffusers and the host's stock loader have a place for every key of a LoRA file.

As a script, in a process that has the host on its path: lora_keys.py JSON, an object with "lora" (a file), "geometry"
(the transformer's, under diffusers' names) and "answer" (a file, which becomes {"unknown": [keys without a place]}).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def fits_diffusers(lora: Path, geometry: dict[str, Any]) -> bool:
    """Whether diffusers puts every tensor of a LoRA file on a transformer of this geometry, on the meta device."""
    import torch
    from diffusers import FluxPipeline, FluxTransformer2DModel
    from peft.tuners.lora import LoraLayer
    from safetensors.torch import load_file

    with torch.device("meta"):
        model = FluxTransformer2DModel(**geometry)
    state = FluxPipeline.lora_state_dict(load_file(lora), return_alphas=True)
    state, alphas = state[0], state[1] if len(state) > 1 else None
    FluxPipeline.load_lora_into_transformer(state, alphas, model, low_cpu_mem_usage=True)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return len(layers) * 2 == sum(".lora_" in name for name in load_file(lora))


def fits_host(lora: Path, geometry: dict[str, Any], folder: Path) -> bool:
    """Whether the host's stock loader finds a place for every key of a LoRA file: its own mapping, on the meta device,
    in a process of its own."""
    from scripts.environment import SetupError
    from scripts.host import SHIM_FOLDER, get_host

    host, answer = get_host(), folder / "host.json"
    request = json.dumps({"lora": str(lora), "geometry": geometry, "answer": str(answer)})
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), request],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SHIM_FOLDER), str(host)])},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SetupError(f"The host's loader failed: {done.stderr.strip()[-300:]}")
    return json.loads(answer.read_text(encoding="utf-8")) == {"unknown": []}


def main(request: dict) -> None:
    import comfy.options
    from comfy.cli_args import args

    args.cpu = True

    import comfy.lora
    import comfy.lora_convert
    import comfy.model_base
    import comfy.supported_models
    import comfy.utils
    import torch
    from comfy.ldm.flux.model import FluxParams

    geometry = request["geometry"]
    channels = geometry["in_channels"] // 4
    flux = {
        "image_model": "flux",
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": 2,
        "vec_in_dim": geometry["pooled_projection_dim"],
        "context_in_dim": geometry["joint_attention_dim"],
        "hidden_size": geometry["num_attention_heads"] * geometry["attention_head_dim"],
        "mlp_ratio": 4.0,
        "num_heads": geometry["num_attention_heads"],
        "depth": geometry["num_layers"],
        "depth_single_blocks": geometry["num_single_layers"],
        "axes_dim": list(geometry["axes_dims_rope"]),
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": geometry["guidance_embeds"],
        "txt_ids_dims": [],
    }
    known = FluxParams.__dataclass_fields__
    config = comfy.supported_models.Flux({k: v for k, v in flux.items() if k in known or k == "image_model"})
    config.set_inference_dtype(torch.bfloat16, None)
    with torch.device("meta"):
        model = config.get_model({}, "")
    tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(request["lora"], safe_load=True))
    patches = comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(model, {}), log_missing=False)
    used = {key for adapter in patches.values() for key in adapter.loaded_keys}
    places = {target[0] if isinstance(target, tuple) else target for target in patches}
    lost = sorted(set(tensors) - used) + sorted(places - set(model.state_dict()))
    Path(request["answer"]).write_text(json.dumps({"unknown": lost}), encoding="utf-8")


if __name__ == "__main__":
    del sys.path[0]  # this folder: its modules must not hide the host's
    main(json.loads(sys.argv[1]))
