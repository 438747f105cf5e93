"""Run by endurance.py in a process that has the host on its path: keys of a LoRA file that its loader does not place.

Usage: stock_keys.py JSON, an object with "lora" (a file), "geometry" (the transformer's, under diffusers' names) and
"answer" (a file, which becomes {"unknown": […]}).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


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
    main(json.loads(sys.argv[1]))
