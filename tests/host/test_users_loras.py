"""LoRA files that users bring, in a real server: the picture that they mean, what is told about them, and that a file
that was replaced counts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scripts.host import Host
from tests.support.loras import dotted, random_lora
from training.lora.files import convert
from training.lora.format import LoraWeights, write_lora

from .graphs import Graph, node, painted, picture, psnr, refusal

WIDTH = 256  # of the demo model


def small(seed: int) -> LoraWeights:
    found = random_lora(seed, blocks=3, hidden=WIDTH)
    found["norm_out.linear"] = (torch.randn(4, WIDTH), torch.randn(2 * WIDTH, 4) * 0.2, 4.0)
    return {module: (a * 0.15, b, alpha) for module, (a, b, alpha) in found.items()}


def preview(images: list) -> dict[str, Any]:
    return node("PreviewImage", images=images)


@pytest.fixture(scope="module")
def loras(host: Host) -> Path:
    """The folder of this file's LoRAs."""
    place = host.base / "models" / "loras" / "brought"
    place.mkdir()
    bias = {f"{module}.diff_b": torch.ones(len(b)) for module, (_, b, _) in small(0).items()}
    save_file(dotted(small(0), "") | bias, place / "bare.safetensors")
    convert(place / "bare.safetensors", place / "converted.safetensors")
    return place


def test_a_dialect_that_the_host_does_not_know_does_what_its_conversion_does(host: Host, loras: Path) -> None:
    """Apply and stack rows; all the time, and in a part of the sampling that is nearly all of it."""
    base = picture(host, painted({}, lora="brought/bare.safetensors", strength=0.0))
    ours = picture(host, painted({}, lora="brought/converted.safetensors"))
    assert psnr(ours, base) < 30
    row = {"row": node("EraseAnything_LoraStack", lora="brought/bare.safetensors", weight=1.0, on=True)}
    for graph in (
        painted({}, lora="brought/bare.safetensors"),
        painted({}, lora="brought/bare.safetensors", end=0.95),
        painted(row, stack=["row", 0]),
        painted(row, stack=["row", 0], end=0.95),
    ):
        assert psnr(picture(host, graph), ours) >= 50


def test_what_was_left_out_is_told_on_the_node(host: Host, loras: Path) -> None:
    sentence = "bare.safetensors: its changes of 7 biases were left out"
    assert sentence in host.run(painted({}, lora="brought/bare.safetensors"))["outputs"]["apply"]["text"][0]
    row = {"row": node("EraseAnything_LoraStack", lora="brought/bare.safetensors", weight=1.0, on=True)}
    outputs = host.run(painted(row, stack=["row", 0]))["outputs"]
    assert sentence in outputs["row"]["text"][0] and sentence in outputs["apply"]["text"][0]
    merge = {
        **row,
        "merge": node(
            "EraseAnything_MergeLoras", stack=["row", 0], mode="concat", save_as="", rank=0, error=0.05, preserve=0.1
        ),
    }
    assert sentence in host.run(merge)["outputs"]["merge"]["text"][0]
    # a file that is read whole is not spoken of
    assert "apply" not in host.run(painted({}, lora="brought/converted.safetensors"))["outputs"]


def compared(kind: str, **lora: Any) -> Graph:
    graph = painted({}, lora="none")
    graph = {"flux": graph["flux"]}
    amount = {"strength": 1.0} if kind == "Compare" else {"strengths": "0, 1"}
    graph["show"] = node(
        f"EraseAnything_{kind}", flux=["flux", 0], prompts="a car", seed=3, seeds=1, steps=2, **amount, **lora
    )
    return graph


@pytest.mark.parametrize("kind", ["Compare", "StrengthSweep"])
def test_compare_and_sweep(kind: str, host: Host, loras: Path) -> None:
    bare, ours = (picture(host, compared(kind, lora=f"brought/{name}.safetensors")) for name in ("bare", "converted"))
    # the labels name the files
    assert np.abs(bare - ours)[-128:].max() <= 2
    right = bare[-134:-6, bare.shape[1] // 2 :]
    assert np.abs(right - bare[-134:-6, : right.shape[1]]).mean() > 2
    shown = host.run(compared(kind, lora="brought/bare.safetensors"))["outputs"]["show"]
    assert "7 biases were left out" in shown["text"][0] and shown["images"]


def ran(host: Host, graph: Graph) -> set[str]:
    """The nodes of a graph that the host ran, and did not take from its cache."""
    messages = dict(host.run(graph)["status"]["messages"])
    return set(graph) - set(messages["execution_cached"]["nodes"])


def applied(name: str) -> Graph:
    return painted({}, lora=name)


def linked(name: str) -> Graph:
    return painted({"name": node("PrimitiveString", value=name)}, lora_name=["name", 0])


def stacked(name: str) -> Graph:
    return painted({"row": node("EraseAnything_LoraStack", lora=name, weight=1.0, on=True)}, stack=["row", 0])


def stacked_by_link(name: str) -> Graph:
    graph = {"name": node("PrimitiveString", value=name)}
    graph["row"] = node("EraseAnything_LoraStack", lora="none", lora_name=["name", 0], weight=1.0, on=True)
    return painted(graph, stack=["row", 0])


def of_folder(name: str) -> Graph:
    folder = node("EraseAnything_LoraFolder", folder=str(Path(name).parent), weight=1.0)
    return painted({"row": folder}, stack=["row", 0])


def of_set(name: str) -> Graph:
    return painted({"row": node("EraseAnything_LoraSet", saved="replaced", weight=1.0)}, stack=["row", 0])


def merged(name: str) -> Graph:
    graph = {"row": node("EraseAnything_LoraStack", lora=name, weight=1.0, on=True)}
    graph["merge"] = node(
        "EraseAnything_MergeLoras", stack=["row", 0], mode="concat", save_as="", rank=0, error=0.05, preserve=0.1
    )
    return painted(graph, stack=["merge", 0])


def comparing(name: str) -> Graph:
    return compared("Compare", lora=name)


def sweeping_by_link(name: str) -> Graph:
    return {
        "name": node("PrimitiveString", value=name),
        **compared("StrengthSweep", lora="none", lora_name=["name", 0]),
    }


@pytest.mark.parametrize(
    "graph",
    [applied, linked, stacked, stacked_by_link, of_folder, of_set, merged, comparing, sweeping_by_link],
    ids=lambda graph: graph.__name__,
)
def test_a_file_that_was_replaced_counts(host: Host, loras: Path, graph: Callable[[str], Graph]) -> None:
    name = f"replaced_{graph.__name__}/one.safetensors"
    path = host.base / "models" / "loras" / name
    write_lora(path, small(1), {})
    if graph is of_set:
        save = node("EraseAnything_SaveLoraSet", stack=["row", 0], name="replaced")
        host.run({"row": node("EraseAnything_LoraStack", lora=name, weight=1.0, on=True), "save": save})
    before = picture(host, graph(name))
    assert not ran(host, graph(name))  # nothing has changed, and nothing runs
    write_lora(path, small(2), {})
    again = ran(host, graph(name))
    assert "show" in again and "flux" not in again
    assert psnr(picture(host, graph(name)), before) < 40
    assert not ran(host, graph(name))
    (host.base / "user" / "__erase_anything" / "lora_sets" / "replaced.json").unlink(missing_ok=True)


def test_alpha_beside_a_file_counts_too(host: Host, loras: Path) -> None:
    place = host.base / "models" / "loras" / "peft"
    place.mkdir()
    plain = {name: value for name, value in dotted(small(3), "base_model.model.").items() if "alpha" not in name}
    save_file(plain, place / "adapter_model.safetensors")
    one = picture(host, applied("peft/adapter_model.safetensors"))
    (place / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 1}')
    told = host.run(applied("peft/adapter_model.safetensors"))["outputs"]["apply"]["text"][0]
    assert "alpha was read from adapter_config.json: 1 at rank 4" in told
    quarter = picture(host, applied("peft/adapter_model.safetensors"))
    (place / "adapter_config.json").unlink()
    assert psnr(quarter, one) < 40
    assert psnr(quarter, picture(host, painted({}, lora="peft/adapter_model.safetensors", strength=0.25))) > 50


def test_a_checkpoint_that_was_replaced_is_baked_again(host: Host, loras: Path, demo_folder: Path) -> None:
    path = host.base / "models" / "diffusion_models" / "baked_again.safetensors"
    path.parent.mkdir(exist_ok=True)
    shutil.copy(next((demo_folder / "transformer").glob("*.safetensors")), path)
    graph = {
        "row": node("EraseAnything_LoraStack", lora="brought/converted.safetensors", weight=1.0, on=True),
        "bake": node(
            "EraseAnything_Bake",
            checkpoint="diffusion_models/baked_again.safetensors",
            stack=["row", 0],
            strength=0.5,
            save_as="baked anew",
        ),
    }
    assert ran(host, graph) == {"row", "bake"} and ran(host, graph) == set()
    os.utime(path, ns=(1, 1))
    assert ran(host, graph) == {"bake"}


def test_a_model_whose_text_encoder_was_replaced_is_loaded_again(host: Host, demo_folder: Path) -> None:
    place = host.base / "models" / "diffusers" / "replaced"
    shutil.copytree(demo_folder, place, ignore=shutil.ignore_patterns("classifier"))
    graph = {"flux": painted({})["flux"], "show": node("PreviewAny", source=["flux", 0])}
    graph["flux"]["inputs"]["model"] = "replaced"
    host.get("/object_info/EraseAnything_LoadFlux")
    assert ran(host, graph) == {"flux", "show"} and ran(host, graph) == set()
    os.utime(next((place / "text_encoder").glob("*.safetensors")), ns=(1, 1))
    assert ran(host, graph) == {"flux", "show"}


@pytest.mark.parametrize("file", ["UPPER.SAFETENSORS", "Mixed.SafeTensors", "lower.safetensors"])
def test_endings_in_any_case(host: Host, loras: Path, file: str) -> None:
    shutil.copy(loras / "converted.safetensors", loras / file)
    offered = host.get("/object_info/EraseAnything_ApplyLora")["EraseAnything_ApplyLora"]["input"]["required"]["lora"]
    assert f"brought/{file}" in str(offered)
    ours = picture(host, applied("brought/converted.safetensors"))
    assert np.array_equal(picture(host, applied(f"brought/{file}")), ours)
    for name in (file, Path(file).stem, f"{Path(file).stem}.safetensors"):
        assert np.array_equal(picture(host, linked(f"brought/{name}")), ours)
    assert "no file 'UPPER2.safetensors' among the loras" in refusal(host, linked("brought/UPPER2"))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight": torch.ones(2, 8)},
            "is a LoRA for FLUX.2, not for FLUX.1",
        ),
        ({"transformer.transformer_blocks.0.attn.to_q.dora_scale": torch.ones(8)}, "is a DoRA"),
    ],
)
def test_what_no_node_can_apply_is_named(host: Host, loras: Path, tensors: dict, message: str) -> None:
    save_file(tensors, loras / "refused.safetensors")
    row = {"row": node("EraseAnything_LoraStack", lora="brought/refused.safetensors", weight=1.0, on=True)}
    for graph in (
        applied("brought/refused.safetensors"),
        painted(row, stack=["row", 0]),
        compared("Compare", lora="brought/refused.safetensors"),
    ):
        assert message in refusal(host, graph)
