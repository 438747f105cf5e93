"""Run by test_lora_layouts.py in a process that has the host on its path: what the nodes make of every layout.

Usage: layouts_probe.py FOLDER. FOLDER/probe.json: the host's config of a Flux, and "files": name → path. Writes
FOLDER/result.json: name → the sentence of a refusal, or how many patches the MODEL has; FOLDER/dense.safetensors:
"<kind>/<name>/<native weight>" → the change that the host computes from the patches ("always") or that the conditional
LoRA adds ("some").
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import comfy.options
from comfy.cli_args import args

args.cpu = True

import comfy.lora  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.flux.model import FluxParams  # noqa: E402
from native_probe import pack_module  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

cpu = torch.device("cpu")


class Forgetful(comfy.model_patcher.ModelPatcher):
    """Does not take the last of the patches that it is given."""

    def add_patches(self, patches: dict, *args, **kwargs) -> list:
        return super().add_patches(dict(list(patches.items())[:-1]), *args, **kwargs)


def blank_model(config: dict) -> comfy.model_patcher.ModelPatcher:
    """The host's Flux with zeros for weights."""
    flux = {**config, "txt_ids_dims": []}  # newer hosts ask for it
    known = FluxParams.__dataclass_fields__
    made = comfy.supported_models.Flux({k: v for k, v in flux.items() if k in known or k == "image_model"})
    made.set_inference_dtype(torch.float32, None)
    model = made.get_model({}, "")
    for parameter in model.parameters():
        parameter.data.zero_()
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


@torch.inference_mode()
def main(folder: Path) -> None:
    request = json.loads((folder / "probe.json").read_text())
    model = blank_model(request["config"])
    shapes = {name: tuple(weight.shape) for name, weight in model.model.state_dict().items()}
    native, conditional, errors = (
        pack_module(name) for name in ("nodes.native", "nodes.conditional", "training.errors")
    )
    result, dense = {}, {}
    for name, path in request["files"].items():
        try:
            lora = native.place_lora(model, path)
        except errors.LoraError as error:
            result[name] = str(error)
            continue
        patched = native.apply_lora(model, lora, 1.0)
        result[name] = sum(map(len, patched.patches.values()))
        for weight, patches in patched.patches.items():
            change = comfy.lora.calculate_weight(patches, torch.zeros(shapes[weight]), weight)
            dense[f"always/{name}/{weight}"] = change
        part = conditional.ConditionalLora(lora, 1.0, (1.0, 0.0), None)
        part.rows = torch.tensor([0])
        for place, forward in part.put_on(model).object_patches.items():
            inputs = shapes[place.removesuffix(".forward") + ".weight"][1]
            dense[f"some/{name}/{place.removesuffix('.forward')}.weight"] = forward(torch.eye(inputs)[None])[0].T
    try:
        native.apply_lora(Forgetful(model.model, cpu, cpu), native.place_lora(model, request["files"]["kohya"]), 1.0)
    except errors.LoraError as error:
        result["forgetful"] = str(error)
    (folder / "result.json").write_text(json.dumps(result))
    save_file({name: value.clone().contiguous() for name, value in dense.items()}, folder / "dense.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
