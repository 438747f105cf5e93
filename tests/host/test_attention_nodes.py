"""The inspector's nodes in a real server: what they draw, export and refuse."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.host import Host, HostError
from training.inspection.heatmaps import draw_figure, read_figure

Graph = dict[str, dict[str, Any]]
PROMPT = "a cat next to a car on a blue background"
RECORD = {
    "blocks": "best",
    "t_start": 1.0,
    "t_end": 0.0,
    "heads": "mean",
    "tokens": 128,
    "mode": "words",
    "concepts": "",
}
DRAW = {"words": "", "image_index": 0, "colour_map": "blue to yellow", "opacity": 0.6}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def base(batch: int = 1) -> Graph:
    """Load, encode, record, sample with the stock KSampler, decode."""
    files = dict.fromkeys(("transformer", "clip_l", "t5", "vae"), "none")
    sampling = {"seed": 4, "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    return {
        "flux": node("EraseAnything_LoadFlux", model="demo (flux-emoji)", precision="fp32", **files),
        "native": node("EraseAnything_FluxToNative", flux=["flux", 0]),
        "text": node("CLIPTextEncode", clip=["native", 1], text=PROMPT),
        "guided": node("FluxGuidance", conditioning=["text", 0], guidance=3.5),
        "empty": node("EmptySD3LatentImage", width=128, height=128, batch_size=batch),
        "record": node("EraseAnything_RecordAttention", model=["native", 0], **RECORD),
        "sampler": node(
            "KSampler",
            model=["record", 0],
            positive=["guided", 0],
            negative=["text", 0],
            latent_image=["empty", 0],
            **sampling,
        ),
        "image": node("VAEDecode", samples=["sampler", 0], vae=["native", 2]),
    }


def heatmaps(batch: int = 1, **changes: Any) -> Graph:
    inputs = {"prompt": PROMPT, "scale": "shared", "save_as": "", **DRAW, **changes}
    graph = base(batch)
    graph["heatmaps"] = node(
        "EraseAnything_TokenHeatmaps", recording=["record", 1], image=["image", 0], clip=["native", 1], **inputs
    )
    return graph


def fetched(host: Host, file: dict[str, str]) -> bytes:
    query = f"filename={file['filename']}&subfolder={file['subfolder']}&type={file['type']}"
    status, data = host.request("GET", f"/view?{query}")
    assert status == 200
    return data


def pixels(host: Host, outputs: dict[str, Any]) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(fetched(host, image))).convert("RGB")) for image in outputs["images"]]


def refusal(host: Host, graph: Graph) -> str:
    with pytest.raises(HostError) as caught:
        host.run(graph)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


def test_heatmaps_of_a_sampled_picture(host: Host) -> None:
    graph = heatmaps(save_as="inspector/maps")
    graph["overlays"] = node("PreviewImage", images=["heatmaps", 0])
    graph["sheet"] = node("PreviewImage", images=["heatmaps", 1])
    graph["masks"] = node("MaskToImage", mask=["heatmaps", 2])
    graph["masks shown"] = node("PreviewImage", images=["masks", 0])
    outputs = host.run(graph)["outputs"]

    data = json.loads(fetched(host, outputs["heatmaps"]["heatmaps"][0]))
    texts = [word["text"] for word in data["words"]]
    assert texts == [*PROMPT.split(), "end", "padding"]
    assert [word["kind"] for word in data["words"][-3:]] == ["word", "end", "padding"]
    assert data["times"] == pytest.approx([1.0, 0.75, 0.5, 0.25], abs=1e-3)
    assert 0.05 < sum(word["mass"] for word in data["words"]) < 1
    figure = read_figure(data)
    assert figure.maps.shape == (12, 8, 8)

    overlays, masks = pixels(host, outputs["overlays"]), pixels(host, outputs["masks shown"])
    assert len(overlays) == len(masks) == 10 and overlays[0].shape == (128, 128, 3)
    assert max(mask.max() for mask in masks) > 240  # one scale: the highest map reaches white
    # the JSON alone redraws the node's picture
    assert np.array_equal(pixels(host, outputs["sheet"])[0], np.asarray(draw_figure(figure)))
    saved = {path.suffix: path for path in (host.base / "output" / "inspector").glob("maps_00001_.*")}
    assert set(saved) == {".png", ".npz", ".json"}
    exported = json.loads(saved[".json"].read_text(encoding="utf-8"))
    assert exported == data
    assert np.array_equal(np.load(saved[".npz"])["maps"], figure.maps)


def test_chosen_words_and_a_later_image_of_a_batch(host: Host) -> None:
    graph = heatmaps(batch=2, words="Blue Background, car", image_index=1, scale="each")
    graph["overlays"] = node("PreviewImage", images=["heatmaps", 0])
    outputs = host.run(graph)["outputs"]
    data = json.loads(fetched(host, outputs["heatmaps"]["heatmaps"][0]))
    assert [word["text"] for word in data["words"] if word["kind"] == "word"] == ["Blue Background", "car"]
    assert data["words"][0]["tokens"] == [8, 9]
    assert len(pixels(host, outputs["overlays"])) == 2


def test_redrawing_needs_no_sampling(host: Host) -> None:
    """Only the drawing runs again when only the drawing changes: the recording lives as long as the graph needs it."""
    host.run(heatmaps(opacity=0.55))
    again = host.run(heatmaps(opacity=0.35))
    cached = next(message["nodes"] for kind, message in again["status"]["messages"] if kind == "execution_cached")
    assert {"record", "sampler", "image"} <= set(cached) and "heatmaps" not in cached
    assert again["outputs"]["heatmaps"]["heatmaps"]


def test_an_existing_picture_without_sampling(host: Host) -> None:
    graph = heatmaps()
    graph["inspect"] = node(
        "EraseAnything_InspectImage",
        model=["native", 0],
        clip=["native", 1],
        vae=["native", 2],
        image=["image", 0],
        prompt=PROMPT,
        t=0.0,
        seed=1,
        guidance=3.5,
        blocks="best",
        heads="each",
        tokens=128,
    )
    graph["heatmaps"]["inputs"]["recording"] = ["inspect", 0]
    data = json.loads(fetched(host, host.run(graph)["outputs"]["heatmaps"]["heatmaps"][0]))
    assert data["times"] == pytest.approx([0.1])  # what suits the demo model
    assert data["heads"] == 2


def test_two_recordings_compared(host: Host) -> None:
    graph = base()
    graph["deleted"] = node(
        "EraseAnything_DeleteAttention",
        model=["native", 0],
        clip=["native", 1],
        prompt=PROMPT,
        phrase="car",
        blocks="double",
        t_start=1.0,
        t_end=0.0,
    )
    graph["record 2"] = node("EraseAnything_RecordAttention", model=["deleted", 0], **RECORD)
    graph["sampler 2"] = node("KSampler", **{**graph["sampler"]["inputs"], "model": ["record 2", 0]})
    graph["image 2"] = node("VAEDecode", samples=["sampler 2", 0], vae=["native", 2])
    graph["compare"] = node(
        "EraseAnything_CompareAttention",
        before=["record", 1],
        image_before=["image", 0],
        after=["record 2", 1],
        image_after=["image 2", 0],
        clip=["native", 1],
        prompt=PROMPT,
        **{**DRAW, "words": "cat, car"},
    )
    outputs = host.run(graph)["outputs"]["compare"]
    sheet = pixels(host, outputs)[0]
    assert sheet.shape[1] > 3 * 128 and sheet.shape[0] > 3 * 128
    table = outputs["text"][0].splitlines()
    assert [line.split()[0] for line in table] == ["word", "cat", "car", "end", "padding"]

    graph["record 2"]["inputs"]["blocks"] = "all"
    assert "differ in size or blocks" in refusal(host, graph)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": "dog"}, 'does not contain "dog"'),
        ({"image_index": 3}, "The batch has 1 images"),
        ({"save_as": "../../outside"}, "inside the output folder"),
        ({"colour_map": "jet"}, "Choose a colour map"),
        ({"prompt": "  "}, "no word to draw"),
    ],
)
def test_what_token_heatmaps_refuses(host: Host, changes: dict[str, Any], message: str) -> None:
    assert message in refusal(host, heatmaps(**changes))


def test_a_recording_that_nothing_filled(host: Host) -> None:
    graph = heatmaps()
    graph["sampler"]["inputs"]["model"] = ["native", 0]
    assert "Nothing was recorded" in refusal(host, graph)


def test_few_tokens(host: Host) -> None:
    graph = heatmaps()
    graph["record"]["inputs"]["tokens"] = 3
    assert "Only 3 text tokens were recorded" in refusal(host, graph)
