"""Every example workflow, opened out of the template browser in the real frontend, in both renderers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.host import Host
from tests.support.loras import random_lora
from training.lora.format import write_lora

from .conftest import Frontend

WORKFLOWS = sorted((Path(__file__).parents[2] / "example_workflows").glob("*.json"))
TRAIN = "EraseAnything_Train"


@pytest.fixture(scope="module", autouse=True)
def trained(host: Host) -> Iterator[None]:
    """The file that the first example trains and others use: newer frontends point at nodes whose file is missing."""
    file = host.base / "models" / "loras" / "erase-car.safetensors"
    write_lora(file, random_lora(0, hidden=256), {})
    yield
    file.unlink()


def panels(frontend: Frontend) -> int:
    return frontend.page.locator(".erase-anything:not(.ea-box)").count()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_opens_without_error(frontend: Frontend, path: Path) -> None:
    frontend.open()
    own = set(frontend.errors)
    assert not [error for error in own if "erase" in error.lower()]
    frontend.errors.clear()

    frontend.open(path.stem)
    saved = json.loads(path.read_text(encoding="utf-8"))
    shown = frontend.page.evaluate(
        "app.graph.nodes.map((node) => [node.type, !!LiteGraph.registered_node_types[node.type], !!node.has_errors])"
    )
    assert sorted(node for node, _, _ in shown) == sorted(node["type"] for node in saved["nodes"])
    assert all(known and not wrong for _, known, wrong in shown), shown
    assert frontend.page.evaluate("[...app.graph.links.values()].length") == len(saved["links"])
    assert not frontend.page.get_by_text("Missing Node").count()
    # the Train and Evaluate nodes have their advanced settings' button as well
    with_panel = {TRAIN: 2, "EraseAnything_Evaluate": 2} | dict.fromkeys(
        ("EraseAnything_Wait", "EraseAnything_Concept", "EraseAnything_TokenHeatmaps", "EraseAnything_Report"), 1
    )
    assert panels(frontend) == sum(with_panel.get(node["type"], 0) for node in saved["nodes"])
    assert not set(frontend.errors) - own


def test_train_node_keeps_the_defaults(frontend: Frontend) -> None:
    """A default lives in ErasureConfig: no example may still hold an older one."""
    inputs = frontend.host.get(f"/object_info/{TRAIN}")[TRAIN]["input"]
    every = {**inputs["required"], **inputs["optional"]}
    defaults = {name: spec[1]["default"] for name, spec in every.items() if len(spec) > 1 and "default" in spec[1]}
    frontend.open("1_erase_and_compare")
    values = frontend.page.evaluate(
        """(type) => Object.fromEntries(
            app.graph.nodes.find((node) => node.type === type).widgets
                .filter((widget) => widget.serialize !== false).map((widget) => [widget.name, widget.value]))""",
        TRAIN,
    )
    assert values == defaults
