"""Graphs in API format that several host tests run: a stock sampler behind Apply Erasure LoRA, and its picture."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.host import Host, HostError

Graph = dict[str, dict[str, Any]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def painted(graph: Graph, prompt: str = "a photo of a cat", **apply: Any) -> Graph:
    """A sampler on the demo model behind Apply Erasure LoRA with these inputs ("clip" is the demo model's)."""
    files = dict.fromkeys(("transformer", "clip_l", "t5", "vae"), "none")
    sampling = {"seed": 4, "steps": 3, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    inputs = {"lora": "none", "strength": 1.0, **apply}
    return {
        **graph,
        "flux": node("EraseAnything_LoadFlux", model="demo (flux-emoji)", precision="fp32", **files),
        "native": node("EraseAnything_FluxToNative", flux=["flux", 0]),
        "apply": node("EraseAnything_ApplyLora", model=["native", 0], **inputs),
        "text": node("CLIPTextEncode", clip=["native", 1], text=prompt),
        "empty": node("EmptySD3LatentImage", width=128, height=128, batch_size=1),
        "sampler": node(
            "KSampler",
            model=["apply", 0],
            positive=["text", 0],
            negative=["text", 0],
            latent_image=["empty", 0],
            **sampling,
        ),
        "image": node("VAEDecode", samples=["sampler", 0], vae=["native", 2]),
        "show": node("PreviewImage", images=["image", 0]),
    }


def picture(host: Host, graph: Graph) -> np.ndarray:
    """What a graph's node "show" previews, [H, W, 3] in 0..255."""
    image = host.run(graph)["outputs"]["show"]["images"][0]
    query = f"filename={image['filename']}&subfolder={image['subfolder']}&type={image['type']}"
    return np.asarray(Image.open(io.BytesIO(host.request("GET", f"/view?{query}")[1])).convert("RGB"), dtype=float)


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """dB of two pictures in 0..255."""
    error = float(np.square(first - second).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def refusal(host: Host, graph: Graph) -> str:
    """The one sentence with which a graph fails."""
    with pytest.raises(HostError) as caught:
        host.run(graph)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)
