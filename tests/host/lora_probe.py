"""Run by test_lora_in_host.py in a process that has the host on its path: what the host makes of LoRA files.

Usage: lora_probe.py FOLDER. For every FOLDER/*.lora.safetensors writes FOLDER/<stem>.dense.safetensors: native weight →
the dense change that the host's own code computes; and FOLDER/result.json: per file, keys that it did not load.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import comfy.options
from comfy.cli_args import args

args.cpu = True

import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.flux.model import FluxParams  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


@torch.inference_mode()
def main(folder: Path) -> None:
    request = json.loads((folder / "probe.json").read_text())
    flux = {**request["config"], "txt_ids_dims": []}  # newer hosts ask for it
    known = FluxParams.__dataclass_fields__
    config = comfy.supported_models.Flux({k: v for k, v in flux.items() if k in known or k == "image_model"})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    keys = comfy.lora.model_lora_keys_unet(model, {})
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    result = {}
    for path in sorted(folder.glob("*.lora.safetensors")):
        tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(path), safe_load=True))
        patches = comfy.lora.load_lora(tensors, keys, log_missing=False)
        dense = {}
        for target, adapter in patches.items():
            name, offset, function = (*target, None)[:3] if isinstance(target, tuple) else (target, None, None)
            weight = dense.setdefault(name, torch.zeros(shapes[name]))
            dense[name] = comfy.lora.calculate_weight([(1.0, adapter, 1.0, offset, function)], weight, name)
        used = {key for adapter in patches.values() for key in adapter.loaded_keys}
        result[path.name] = sorted(set(tensors) - used)
        stem = path.name.removesuffix(".lora.safetensors")
        save_file(
            {name: value.clone().contiguous() for name, value in dense.items()}, folder / f"{stem}.dense.safetensors"
        )
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
