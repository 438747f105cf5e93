"""Stacks of LoRAs in a real server: what they hold, what merging them writes, and that both paint the same."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.host import Host, HostError
from tests.loras import dense, random_lora, relative_error, weighted
from training.lora.format import make_metadata, read_lora, write_lora

Graph = dict[str, dict[str, Any]]
WEIGHTS = {"one": 1.0, "two": -0.5}
LORAS = {name: random_lora(n, rank=4 + n, blocks=3, hidden=256) for n, name in enumerate(("one", "two"))}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


@pytest.fixture(scope="module")
def folder(host: Host) -> str:
    """The folder of the two LoRAs, as the host names it."""
    place = host.base / "models" / "loras" / "stacked"
    place.mkdir()
    for name, weights in LORAS.items():
        small = {module: (a * 0.02, b, alpha) for module, (a, b, alpha) in weights.items()}
        LORAS[name] = small
        facts = {"concept": {"phrase": f"the {name}"}, "method": "esd", "base": "a base", "version": "1"}
        write_lora(place / f"{name}.safetensors", small, make_metadata(**facts, config={}, metrics={}))
    return place.name


def stack(folder: str, **weights: float) -> Graph:
    graph: Graph = {}
    for number, (name, weight) in enumerate((weights or WEIGHTS).items()):
        row = node("EraseAnything_LoraStack", lora=f"{folder}/{name}.safetensors", weight=weight, on=True)
        if number:
            row["inputs"]["stack"] = [f"row {number - 1}", 0]
        graph[f"row {number}"] = row
    graph["info"] = node("PreviewAny", source=[f"row {number}", 1])
    return graph


def merged(folder: str, mode: str = "concat", **settings: Any) -> Graph:
    graph = stack(folder)
    inputs = {"save_as": "", "rank": 0, "error": 0.05, "preserve": 0.1, **settings}
    graph["merge"] = node("EraseAnything_MergeLoras", stack=["row 1", 0], mode=mode, **inputs)
    graph["name"] = node("PreviewAny", source=["merge", 1])
    return graph


def painted(graph: Graph, loras: list[Any]) -> Graph:
    """A sampler behind Apply Erasure LoRA with a stack."""
    files = dict.fromkeys(("transformer", "clip_l", "t5", "vae"), "none")
    sampling = {"seed": 4, "steps": 3, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    return {
        **graph,
        "flux": node("EraseAnything_LoadFlux", model="demo (flux-emoji)", precision="fp32", **files),
        "native": node("EraseAnything_FluxToNative", flux=["flux", 0]),
        "apply": node("EraseAnything_ApplyLora", model=["native", 0], lora="none", strength=1.0, stack=loras),
        "text": node("CLIPTextEncode", clip=["native", 1], text="a photo of a cat"),
        "empty": node("EmptySD3LatentImage", width=128, height=128, batch_size=1),
        "sampler": node("KSampler", model=["apply", 0], positive=["text", 0], negative=["text", 0],
                        latent_image=["empty", 0], **sampling),
        "image": node("VAEDecode", samples=["sampler", 0], vae=["native", 2]),
        "show": node("PreviewImage", images=["image", 0]),
    }  # fmt: skip


def picture(host: Host, graph: Graph) -> np.ndarray:
    image = host.run(graph)["outputs"]["show"]["images"][0]
    query = f"filename={image['filename']}&subfolder={image['subfolder']}&type={image['type']}"
    return np.asarray(Image.open(io.BytesIO(host.request("GET", f"/view?{query}")[1])).convert("RGB"), dtype=float)


def refusal(host: Host, graph: Graph) -> str:
    with pytest.raises(HostError) as caught:
        host.run(graph)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


def test_a_stack_says_what_is_in_it(host: Host, folder: str) -> None:
    lines = host.run(stack(folder))["outputs"]["info"]["text"][0].splitlines()
    assert lines == ["1 × one (the one, esd, rank 4)", "-0.5 × two (the two, esd, rank 5)"]
    graph = stack(folder)
    graph["row 1"]["inputs"]["on"] = False
    assert host.run(graph)["outputs"]["info"]["text"] == [lines[0]]
    everything = {"all": node("EraseAnything_LoraFolder", folder=f"{folder}/", weight=0.5)}
    everything["info"] = node("PreviewAny", source=["all", 1])
    assert [line[:9] for line in host.run(everything)["outputs"]["info"]["text"][0].splitlines()] == [
        "0.5 × one", "0.5 × two"
    ]  # fmt: skip


def test_a_merge_is_the_weighted_sum_and_never_overwrites(host: Host, folder: str) -> None:
    expected = weighted(list(LORAS.values()), list(WEIGHTS.values()))
    for name in ("merged.safetensors", "merged (2).safetensors"):
        outputs = host.run(merged(folder, save_as="merged", preserve=0.1 + len(name) / 100))["outputs"]
        assert outputs["name"]["text"] == [name]
        found, _ = read_lora(host.base / "models" / "loras" / name)
        assert relative_error(dense(found), expected) < 1e-5
    report = outputs["merge"]["text"][0]
    assert report.startswith("concat: 6 layers") and "the two: " in report and "dilution" in report


def test_a_merge_paints_as_its_stack(host: Host, folder: str) -> None:
    base = picture(host, painted({}, ["nothing", 0]) | {"apply": node("EraseAnything_ApplyLora", model=["native", 0],
                   lora=f"{folder}/one.safetensors", strength=0.0)})  # fmt: skip
    stacked = picture(host, painted(stack(folder), ["row 1", 0]))
    one = picture(host, painted(merged(folder), ["merge", 0]))
    assert np.abs(stacked - base).max() > 20
    error = float(np.square(one - stacked).mean())
    assert error == 0 or 10 * math.log10(255**2 / error) >= 45


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"save_as": "../outside"}, "cannot be a LoRA's name"),
        ({"stack": ["off", 0]}, "stack is empty"),
    ],
)
def test_what_merging_refuses(host: Host, folder: str, settings: dict[str, Any], message: str) -> None:
    graph = merged(folder)
    graph["off"] = node("EraseAnything_LoraStack", lora="none", weight=1.0, on=True)
    graph["merge"]["inputs"].update(settings)
    assert message in refusal(host, graph)


def test_a_folder_without_loras(host: Host) -> None:
    assert "no LoRA in the folder" in refusal(host, {
        "all": node("EraseAnything_LoraFolder", folder="nowhere/../..", weight=1.0),
        "show": node("PreviewAny", source=["all", 1]),
    })  # fmt: skip
