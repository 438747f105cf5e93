"""Run by test_native.py in a process that has the host on its path: renders through the host's own objects.

Usage: native_probe.py FOLDER. Reads FOLDER/probe.json, writes FOLDER/result.safetensors and FOLDER/result.json.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path

import comfy.options
from comfy.cli_args import args

args.cpu = True

import comfy.samplers  # noqa: E402
import torch  # noqa: E402
from comfy_extras import nodes_custom_sampler, nodes_flux  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import nodes as host_nodes  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def pack_module(name: str):
    """A module of this pack, below a package name of its own as in the host, without the nodes that need a server."""
    for package, folder in (("erase_anything_pack", ROOT), ("erase_anything_pack.nodes", ROOT / "nodes")):
        if package not in sys.modules:
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = [str(folder)]
    return importlib.import_module(f"erase_anything_pack.{name}")


def call(node: type, *values, **named):
    """The outputs of one of the host's V3 nodes."""
    return node.execute(*values, **named).result


@torch.inference_mode()
def main(folder: Path) -> None:
    request = json.loads((folder / "probe.json").read_text())
    source = pack_module("training.models.source").FluxSource.from_dict(request["source"])
    sampling = pack_module("training.models.sampling")
    native = pack_module("nodes.native").load_native(source)
    model, clip, vae, variant = native.model, native.clip, native.vae, native.variant
    prompt, seed, steps = request["prompt"], request["seed"], request["steps"]
    out: dict[str, torch.Tensor] = {}

    # stock text nodes
    plain = host_nodes.CLIPTextEncode().encode(clip, prompt)[0]
    both = call(nodes_flux.CLIPTextEncodeFlux, clip, prompt, prompt, variant.default_guidance)[0]
    positive = call(nodes_flux.FluxGuidance, plain, variant.default_guidance)[0]
    long = host_nodes.CLIPTextEncode().encode(clip, request["long_prompt"])[0]
    weighted = host_nodes.CLIPTextEncode().encode(clip, request["weighted_prompt"])[0]
    out["t5"], out["pooled"] = plain[0][0], plain[0][1]["pooled_output"]
    out["t5_flux"], out["pooled_flux"] = both[0][0], both[0][1]["pooled_output"]
    out["t5_long"], out["pooled_long"] = long[0][0], long[0][1]["pooled_output"]
    out["t5_weighted"] = weighted[0][0]

    height, width = 2 * variant.grid[0], 2 * variant.grid[1]
    latent = {"samples": torch.zeros(1, 16, height, width)}

    def ksampler(with_model) -> torch.Tensor:
        return host_nodes.KSampler().sample(
            with_model, seed, steps, 1.0, "euler", "simple", positive, positive, latent, 1.0
        )[0]["samples"]

    # stock KSampler (its "simple" schedule rounds to 1/10000), then the same with exactly our sigmas
    out["ksampler"] = host_nodes.VAEDecode().decode(vae, {"samples": ksampler(model)})[0]
    levels = sampling.sigmas(variant, steps, variant.grid[0] * variant.grid[1])
    guider = call(nodes_custom_sampler.BasicGuider, model, positive)[0]
    exact = call(
        nodes_custom_sampler.SamplerCustomAdvanced,
        call(nodes_custom_sampler.RandomNoise, seed)[0],
        guider,
        comfy.samplers.sampler_object("euler"),
        levels,
        latent,
    )[0]["samples"]
    out["exact"] = host_nodes.VAEDecode().decode(vae, {"samples": exact})[0]
    out["encoded"] = host_nodes.VAEEncode().encode(vae, out["exact"])[0]["samples"]

    # the host's own LoRA code, and our node's
    lora = comfy.utils.load_torch_file(request["lora"], safe_load=True)
    stock, _ = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    out["lora_stock"] = host_nodes.VAEDecode().decode(vae, {"samples": ksampler(stock)})[0]
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    loaded = comfy.lora.load_lora(lora, keys, log_missing=False)
    known = {f"{key}{end}" for key in keys for end in (".lora_A.weight", ".lora_B.weight", ".alpha")}
    result = {"lora_patches": len(loaded), "unknown_keys": sorted(set(lora) - known)}
    pack = pack_module("nodes.native")
    place_lora, apply_lora, warning_of = pack.place_lora, pack.apply_lora, pack.warning_of
    result["base"] = pack.base_of(model)
    bases = {name: place_lora(model, path) for name, path in request["bases"].items()}
    result["warnings"] = {name: warning_of(model, lora) for name, lora in bases.items()}
    placed = place_lora(model, request["lora"])
    ours = apply_lora(model, placed, 1.0)
    out["lora_ours"] = host_nodes.VAEDecode().decode(vae, {"samples": ksampler(ours)})[0]
    result["strength_zero_is_base"] = apply_lora(model, placed, 0.0) is model
    errors = pack_module("training.errors")
    try:
        place_lora(model, request["foreign_lora"])
        result["foreign"] = None
    except errors.LoraError as error:
        result["foreign"] = str(error)

    # Compare's parts: its images and its picture
    nodes_lora = pack_module("nodes.lora")
    progress = comfy.utils.ProgressBar(1)
    seeds = [seed, seed + 1]
    images = [nodes_lora.render(native, each, prompt, seeds, steps, progress) for each in (model, ours)]
    out["compare_before"], out["compare_after"] = images
    out["compare_picture"] = nodes_lora.comparison_grid([prompt], seeds, ["before", "after: test"], [tuple(images)])

    weights = {}
    for path in source.transformer_files():
        weights.update(comfy.utils.load_torch_file(str(path), safe_load=True))
    single = comfy.model_detection.convert_diffusers_mmdit(weights, "")
    save_file({name: tensor.contiguous() for name, tensor in single.items()}, folder / "native_transformer.safetensors")

    save_file({name: tensor.contiguous().clone() for name, tensor in out.items()}, folder / "result.safetensors")
    model.model.diffusion_model.to(torch.float8_e4m3fn)  # what UNETLoader's weight_dtype does
    result["warnings"]["in fp8"] = warning_of(model, bases["same"])
    model.model.diffusion_model.to(torch.float8_e5m2)
    result["base in e5m2"] = pack.base_of(model)
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
