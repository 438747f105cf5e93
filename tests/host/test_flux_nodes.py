"""Load Flux, Flux to MODEL / CLIP / VAE, Apply Erasure LoRA and Compare in a real server: good and bad input."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from scripts.host import Host, HostError
from tests.support import flux_files
from tests.support.flux_models import fp32_source
from training.lora.adapter import adapter_weights, add_adapter
from training.lora.format import KEY_BASE, read_lora, write_lora
from training.models.loading import load_transformer

Graph = dict[str, dict[str, Any]]
DEMO = "demo (flux-emoji)"


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def load_flux(**changes: str) -> dict[str, Any]:
    files = dict.fromkeys(("transformer", "clip_l", "t5", "vae"), "none")
    return node("EraseAnything_LoadFlux", **{"model": DEMO, "precision": "fp32", **files, **changes})


@pytest.fixture(scope="module")
def lora(host: Host, demo_folder: Path) -> str:
    """The name of a LoRA in the server's folder that changes images visibly."""
    model = load_transformer(fp32_source(demo_folder), "cpu")
    generator = torch.Generator().manual_seed(1)
    for parameter in add_adapter(model, ["attn.add_q_proj", "attn.add_k_proj"], rank=4, alpha=8, seed=0):
        parameter.data.normal_(std=0.3, generator=generator)
    write_lora(host.base / "models" / "loras" / "flux-nodes.safetensors", adapter_weights(model), {})
    return "flux-nodes.safetensors"


def pixels(host: Host, outputs: dict[str, Any]) -> np.ndarray:
    """The first image of a node's outputs, [H, W, 3] of 0..255."""
    image = outputs["images"][0]
    query = f"filename={image['filename']}&subfolder={image['subfolder']}&type={image['type']}"
    status, data = host.request("GET", f"/view?{query}")
    assert status == 200
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def refusal(host: Host, graph: Graph) -> str:
    """The sentence with which a graph fails."""
    with pytest.raises(HostError) as caught:
        host.run(graph)
    sentence = str(caught.value)
    assert "Traceback" not in sentence
    assert str(host.base) not in sentence
    return sentence


def test_stock_nodes_render_and_both_lora_nodes_agree(host: Host, lora: str) -> None:
    sampling = {"seed": 4, "steps": 3, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    graph: Graph = {
        "flux": load_flux(),
        "native": node("EraseAnything_FluxToNative", flux=["flux", 0]),
        "text": node("CLIPTextEncode", clip=["native", 1], text="a car"),
        "guided": node("FluxGuidance", conditioning=["text", 0], guidance=3.5),
        "empty": node("EmptySD3LatentImage", width=128, height=128, batch_size=1),
        "stock": node(
            "LoraLoader", model=["native", 0], clip=["native", 1], lora_name=lora, strength_model=0.7, strength_clip=1.0
        ),
        "ours": node("EraseAnything_ApplyLora", model=["native", 0], lora=lora, strength=0.7),
    }
    for name, model in (("plain", ["native", 0]), ("stock", ["stock", 0]), ("ours", ["ours", 0])):
        graph[f"{name} sampler"] = node(
            "KSampler", model=model, positive=["guided", 0], negative=["text", 0], latent_image=["empty", 0], **sampling
        )
        graph[f"{name} image"] = node("VAEDecode", samples=[f"{name} sampler", 0], vae=["native", 2])
        graph[f"{name} shown"] = node("PreviewImage", images=[f"{name} image", 0])
    outputs = host.run(graph)["outputs"]
    plain, stock, ours = (pixels(host, outputs[f"{name} shown"]) for name in ("plain", "stock", "ours"))
    assert plain.shape == (128, 128, 3)
    assert plain.std() > 5
    assert np.abs(stock - ours).max() <= 1
    assert np.abs(stock - plain).mean() > 2


def compare(lora: str, **changes: Any) -> Graph:
    inputs = {"lora": lora, "strength": 1.0, "prompts": "a car\n\na cat", "seed": 3, "seeds": 2, "steps": 2, **changes}
    return {"flux": load_flux(), "compare": node("EraseAnything_Compare", flux=["flux", 0], **inputs)}


def test_compare_shows_a_labelled_grid(host: Host, lora: str) -> None:
    def picture(**changes: Any) -> np.ndarray:
        return pixels(host, host.run(compare(lora, **changes))["outputs"]["compare"])

    whole = picture()
    assert whole.shape[0] > 2 * 128 and whole.shape[1] > 4 * 128  # two prompts, two seeds before and after
    assert (whole.min(-1) < 100)[: whole.shape[0] // 12].any()  # the labels' ink above the images
    # at strength 0 the right half repeats the left one
    still = picture(strength=0.0, prompts="a car", seeds=1)
    left = still[-128 - 6 : -6, 6 : 6 + 128]
    start = next(x for x in range(130, still.shape[1] - 127) if np.array_equal(still[-134:-6, x : x + 128], left))
    moved = picture(strength=1.0, prompts="a car", seeds=1)
    assert np.array_equal(moved[-134:-6, 6:134], left)
    assert np.abs(moved[-134:-6, start : start + 128] - left).mean() > 2


def test_a_name_from_another_node_overrules_the_list(host: Host, lora: str) -> None:
    graph = compare("none", prompts="a car", seeds=1)
    graph["name"] = node("PrimitiveString", value=lora)
    graph["compare"]["inputs"]["lora_name"] = ["name", 0]
    assert host.run(graph)["outputs"]["compare"]["images"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": "none"}, "There is no LoRA to apply"),
        ({"lora": "gone.safetensors"}, "no file 'gone.safetensors' among the loras"),
        ({"lora": "../../../secret"}, "no file 'secret.safetensors' among the loras"),
        ({"prompts": " \n "}, "There is no prompt"),
        ({"strength": 1.6}, "bigger than max"),
    ],
)
def test_what_compare_refuses(host: Host, lora: str, changes: dict[str, Any], message: str) -> None:
    save_file({"a": torch.zeros(1)}, host.base / "secret.safetensors")
    assert message in refusal(host, compare(**{"lora": lora, **changes}))


def test_a_lora_of_another_model(host: Host) -> None:
    foreign = {"transformer_blocks.7.attn.add_q_proj": (torch.ones(2, 256), torch.ones(256, 2), 2.0)}
    write_lora(host.base / "models" / "loras" / "foreign.safetensors", foreign, {})
    assert "made for another Flux" in refusal(host, compare("foreign.safetensors"))


@pytest.mark.parametrize("kind", ["Compare", "StrengthSweep"])
def test_a_lora_of_another_base_is_rendered_and_told(host: Host, lora: str, kind: str) -> None:
    weights, metadata = read_lora(host.base / "models" / "loras" / lora)
    name = f"of_another_base_{kind}.safetensors"
    write_lora(host.base / "models" / "loras" / name, weights, {**metadata, KEY_BASE: "flux-3x3-0123456789abcdef"})
    graph = compare(name, prompts="a car", seeds=1)
    graph["compare"]["class_type"] = f"EraseAnything_{kind}"
    if kind == "StrengthSweep":
        graph["compare"]["inputs"].pop("strength")
        graph["compare"]["inputs"]["strengths"] = "0, 1"
    assert host.run(graph)["outputs"]["compare"]["images"]
    assert f"{name} was trained on another Flux" in host.log.read_text(encoding="utf-8")


def shown(**changes: str) -> Graph:
    return {"flux": load_flux(**changes), "show": node("PreviewAny", source=["flux", 0])}


def test_a_folder_of_the_host_is_offered_and_loads(host: Host, demo_folder: Path) -> None:
    place = host.base / "models" / "diffusers" / "mine"
    if not place.exists():
        shutil.copytree(demo_folder, place, ignore=shutil.ignore_patterns("classifier"))
    offered = host.get("/object_info/EraseAnything_LoadFlux")["EraseAnything_LoadFlux"]["input"]["required"]["model"]
    assert "mine" in str(offered)
    assert "diffusers" in str(host.run(shown(model="mine"))["outputs"]["show"])


def test_an_all_in_one_checkpoint_and_parts_beside_it(host: Host) -> None:
    models = host.base / "models"
    flux_files.checkpoint(models / "checkpoints" / "flux")
    vae = flux_files.prefixed(flux_files.vae_state(), "vae.")
    flux_files.write(models / "vae" / "another.safetensors", vae)
    inputs = host.get("/object_info/EraseAnything_LoadFlux")["EraseAnything_LoadFlux"]["input"]
    assert "checkpoint" in str(inputs["required"]["model"])
    assert "all-in-one.safetensors" in str(inputs["optional"]["checkpoint"])
    name = str(Path("flux", "all-in-one.safetensors"))  # as the host lists it
    told = str(host.run(shown(model="checkpoint", checkpoint=name))["outputs"]["show"])
    assert told.count("all-in-one.safetensors") == 4
    told = str(host.run(shown(model="checkpoint", checkpoint=name, vae="another.safetensors"))["outputs"]["show"])
    assert told.count("all-in-one.safetensors") == 3 and "another.safetensors" in told
    assert "No checkpoint is chosen" in refusal(host, shown(model="checkpoint"))
    sentence = refusal(host, shown(model="single files", transformer="none", checkpoint=name))
    assert "No file is chosen for transformer" in sentence


def test_a_checkpoint_that_lacks_a_part(host: Host) -> None:
    state = flux_files.prefixed(flux_files.native_transformer(flux_files.transformer_state()), "model.diffusion_model.")
    flux_files.write(host.base / "models" / "checkpoints" / "transformer-only.safetensors", state)
    sentence = refusal(host, shown(model="checkpoint", checkpoint="transformer-only.safetensors"))
    assert "transformer-only.safetensors is a Flux transformer: choose a CLIP-L text encoder for clip_l." in sentence


def test_half_a_folder(host: Host, demo_folder: Path) -> None:
    half = host.base / "models" / "diffusers" / "half"
    shutil.copytree(demo_folder / "transformer", half / "transformer", dirs_exist_ok=True)
    shutil.copy(demo_folder / "model_index.json", half)
    assert "half lacks its folder" in refusal(host, shown(model="half"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "../../elsewhere"}, "no model folder"),
        ({"precision": "fp4"}, "Precision 'fp4' is unknown"),
        ({"model": "single files"}, "No file is chosen for transformer"),
        ({"model": "single files", "transformer": "../../secret.safetensors"}, "no file 'secret.safetensors'"),
    ],
)
def test_what_load_flux_refuses(host: Host, changes: dict[str, str], message: str) -> None:
    assert message in refusal(host, shown(**changes))


def test_single_files_of_a_wrong_kind(host: Host) -> None:
    vae = {"decoder.conv_in.weight": torch.zeros(8, 16, 3, 3)}
    for folder in ("diffusion_models", "text_encoders", "vae"):
        (host.base / "models" / folder).mkdir(parents=True, exist_ok=True)
        save_file(vae, host.base / "models" / folder / "a-vae.safetensors")
    chosen = dict.fromkeys(("transformer", "clip_l", "t5", "vae"), "a-vae.safetensors")
    sentence = refusal(host, shown(model="single files", **chosen))
    assert "a-vae.safetensors is a Flux VAE: choose a Flux transformer for transformer." in sentence
