"""Stacks of LoRAs in a real server: what they hold, what merging them writes, and that both paint the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from scripts.host import Host
from tests.support.loras import dense, random_lora, relative_error, weighted
from training.lora.format import make_metadata, read_lora, write_lora

from .graphs import Graph, node, painted, picture, psnr, refusal

WEIGHTS = {"one": 1.0, "two": -0.5}
PHRASES = {"one": "cat", "two": "car"}
LORAS = {name: random_lora(n, rank=4 + n, blocks=3, hidden=256) for n, name in enumerate(("one", "two"))}


@pytest.fixture(scope="module")
def folder(host: Host) -> str:
    """The folder of the two LoRAs, as the host names it."""
    place = host.base / "models" / "loras" / "stacked"
    place.mkdir()
    for name, weights in LORAS.items():
        small = {module: (a * 0.15, b, alpha) for module, (a, b, alpha) in weights.items()}
        LORAS[name] = small
        concept = {"phrase": PHRASES[name], "synonyms": []}
        facts = {
            "concept": concept,
            "method": "esd",
            "base": "a base",
            "version": "1",
        }
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


def test_a_stack_says_what_is_in_it(host: Host, folder: str) -> None:
    lines = host.run(stack(folder))["outputs"]["info"]["text"][0].splitlines()
    assert lines == ["1 × one (cat, esd, rank 4)", "-0.5 × two (car, esd, rank 5)"]
    graph = stack(folder)
    graph["row 1"]["inputs"]["on"] = False
    assert host.run(graph)["outputs"]["info"]["text"] == [lines[0]]
    everything = {"all": node("EraseAnything_LoraFolder", folder=f"{folder}/", weight=0.5)}
    everything["info"] = node("PreviewAny", source=["all", 1])
    assert [line[:9] for line in host.run(everything)["outputs"]["info"]["text"][0].splitlines()] == [
        "0.5 × one",
        "0.5 × two",
    ]


def test_a_saved_set_is_the_stack_again(host: Host, folder: str) -> None:
    def save(name: str, **weights: float) -> dict[str, Any]:
        graph = stack(folder, **weights)
        last = f"row {len(weights or WEIGHTS) - 1}"
        graph["save"] = node("EraseAnything_SaveLoraSet", stack=[last, 0], name=name)
        return host.run(graph)["outputs"]

    def read(name: str, weight: float = 1.0) -> list[str]:
        graph = {"set": node("EraseAnything_LoraSet", saved=name, weight=weight)}
        graph["info"] = node("PreviewAny", source=["set", 1])
        return host.run(graph)["outputs"]["info"]["text"][0].splitlines()

    assert save("two of them")["save"]["text"] == ["saved as two of them: 2 LoRAs"]
    lines = ["1 × one (cat, esd, rank 4)", "-0.5 × two (car, esd, rank 5)"]
    assert read("two of them") == lines
    assert read("two of them", 0.5) == [lines[0].replace("1 ×", "0.5 ×"), lines[1].replace("-0.5", "-0.25")]
    # never replaced: another stack gets a number, the same one is there already
    assert save("two of them", one=0.3)["save"]["text"] == ["saved as two of them (2): 1 LoRAs"]
    assert read("two of them") == lines and read("two of them (2)") == ["0.3 × one (cat, esd, rank 4)"]
    sets = host.base / "user" / "__erase_anything" / "lora_sets"
    assert sorted(path.name for path in sets.iterdir()) == ["two of them (2).json", "two of them.json"]
    offered = host.get("/object_info/EraseAnything_LoraSet")["EraseAnything_LoraSet"]["input"]["required"]["saved"]
    assert "two of them" in str(offered)
    # its LoRA is gone, the file is damaged, of a future version, or a name that leads elsewhere
    saved = json.loads((sets / "two of them.json").read_text())
    saved["rows"][1]["lora"] = "stacked/gone.safetensors"
    (sets / "gone.json").write_text(json.dumps(saved))
    (sets / "damaged.json").write_text('{"rows": [')
    (sets / "future.json").write_text(json.dumps({**saved, "version": 2}))
    saved["rows"][1]["lora"] = "../../../../etc/passwd"
    (sets / "outside.json").write_text(json.dumps(saved))
    for name, word in {
        "gone": "gone.safetensors, which is not here",
        "damaged": "cannot be read",
        "future": "another version",
        "outside": "not here",
        "never": "There is no set",
        "../future": "There is no set",
    }.items():
        graph = {"set": node("EraseAnything_LoraSet", saved=name, weight=1.0)}
        graph["info"] = node("PreviewAny", source=["set", 1])
        assert word in refusal(host, graph)
    for name, word in {"": "cannot be", "../up": "cannot be", "con": "cannot be"}.items():
        graph = stack(folder)
        graph["save"] = node("EraseAnything_SaveLoraSet", stack=["row 1", 0], name=name)
        assert word in refusal(host, graph)
    graph = merged(folder)
    graph["save"] = node("EraseAnything_SaveLoraSet", stack=["merge", 0], name="unsaved")
    assert "save the merge under a name first" in refusal(host, graph)


def test_a_merge_is_the_weighted_sum_and_never_overwrites(host: Host, folder: str) -> None:
    expected = weighted(list(LORAS.values()), list(WEIGHTS.values()))
    for name in ("merged.safetensors", "merged (2).safetensors"):
        outputs = host.run(merged(folder, save_as="merged", preserve=0.1 + len(name) / 100))["outputs"]
        assert outputs["name"]["text"] == [name]
        found, _ = read_lora(host.base / "models" / "loras" / name)
        assert relative_error(dense(found), expected) < 1e-5
    report = outputs["merge"]["text"][0]
    assert report.startswith("concat: 6 layers") and "car: " in report and "dilution" in report


def test_a_merge_paints_as_its_stack(host: Host, folder: str) -> None:
    base = picture(host, painted({}, lora=f"{folder}/one.safetensors", strength=0.0))
    stacked = picture(host, painted(stack(folder), stack=["row 1", 0]))
    one = picture(host, painted(merged(folder), stack=["merge", 0]))
    assert np.abs(stacked - base).max() > 20
    assert psnr(one, stacked) >= 45


def test_only_when_asked_acts_on_its_own_prompts_alone(host: Host, folder: str) -> None:
    def shown(**apply: Any) -> np.ndarray:
        return picture(host, painted(stack(folder, one=1.0, two=1.0), **apply))

    gate = {"stack": ["row 1", 0], "only_when_asked": True, "threshold": 0.6, "clip": ["native", 1]}
    one, two = (f"{folder}/{name}.safetensors" for name in LORAS)
    base, erased = shown(lora=one, strength=0.0), shown(lora=one)
    assert psnr(base, erased) < 30
    assert psnr(shown(**gate), erased) >= 45  # the prompt has a cat in it, and no car
    tree = {"prompt": "a photo of a tree"}
    assert np.array_equal(shown(**gate, **tree), shown(lora=one, strength=0, **tree))
    cats = {**gate, "lora": two}
    del cats["stack"]
    assert np.array_equal(shown(**cats), base)


def test_a_part_of_the_sampling(host: Host, folder: str) -> None:
    one = f"{folder}/one.safetensors"
    base, whole, first, last, nothing = (
        picture(host, painted({}, lora=one, **apply))
        for apply in ({"strength": 0.0}, {}, {"end": 0.5}, {"start": 0.5}, {"start": 0.99})
    )
    assert np.array_equal(nothing, base)
    for part in (first, last):
        assert psnr(part, base) < 40 and psnr(part, whole) < 40


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"start": 0.6, "end": 0.4}, "start must be below end"),
        ({"only_when_asked": True}, "connect CLIP"),
        (
            {"only_when_asked": True, "clip": ["native", 1], "lora": "nameless.safetensors"},
            "does not say what",
        ),
    ],
)
def test_conditions_that_cannot_be_met(host: Host, folder: str, inputs: dict[str, Any], message: str) -> None:
    write_lora(host.base / "models" / "loras" / "nameless.safetensors", LORAS["one"], {})
    assert message in refusal(host, painted({}, **{"lora": f"{folder}/one.safetensors", **inputs}))


def test_a_checkpoint_with_the_stack_in_it(host: Host, folder: str, demo_folder: Path) -> None:
    models = host.base / "models" / "diffusion_models"
    models.mkdir(exist_ok=True)
    shutil.copy(next((demo_folder / "transformer").glob("*.safetensors")), models / "small.safetensors")
    bake = node(
        "EraseAnything_Bake",
        checkpoint="diffusion_models/small.safetensors",
        stack=["row 1", 0],
        strength=0.5,
        save_as="erased",
    )
    graph = {**stack(folder), "bake": bake, "name": node("PreviewAny", source=["bake", 0])}
    assert host.run(graph)["outputs"]["name"]["text"] == ["erased.safetensors"]
    before, after = load_file(models / "small.safetensors"), load_file(models / "erased.safetensors")
    changes = weighted(list(LORAS.values()), [0.5 * weight for weight in WEIGHTS.values()])
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {f"{module}.weight" for module in changes}
    for module, change in changes.items():
        expected = (before[f"{module}.weight"].double() + change).to(before[f"{module}.weight"].dtype)
        assert relative_error({"": after[f"{module}.weight"].double()}, {"": expected.double()}) < 1e-3
    for inputs, message in [({"save_as": "../out"}, "cannot be a LoRA's"), ({"checkpoint": "none"}, "no checkpoint")]:
        bake["inputs"].update(inputs)
        assert message in refusal(host, graph)


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
    assert "no LoRA in the folder" in refusal(
        host,
        {
            "all": node("EraseAnything_LoraFolder", folder="nowhere/../..", weight=1.0),
            "show": node("PreviewAny", source=["all", 1]),
        },
    )
