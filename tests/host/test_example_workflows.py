"""Every example workflow is converted, validated and run by a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "example_workflows"
WORKFLOWS = sorted(FOLDER.glob("*.json"))


def test_there_are_example_workflows_with_pictures():
    assert len(WORKFLOWS) >= 3
    assert [path.with_suffix(".jpg").is_file() for path in WORKFLOWS] == [True] * len(WORKFLOWS)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_runs(host, erase_graph, path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    prompt = host.convert(workflow)
    known = host.get("/object_info")
    assert {node["class_type"] for node in prompt.values()} <= set(known)
    outputs = {node_id for node_id, node in prompt.items() if known[node["class_type"]]["output_node"]}
    assert outputs
    for number, node in prompt.items():
        inputs = node["inputs"]
        if node["class_type"] == "EraseAnything_Train":  # the road is tested here, not how well it erases
            inputs.update(steps=2, erase_prompts=2, preserve_prompts=2, batch_preserve=2, sample_every=0)
            inputs["name"] = f"example-{path.stem}-{number}"
        if node["class_type"] == "EraseAnything_Evaluate":
            inputs.update(images=1, images_per_other=0, images_per_attack=1)
        if node["class_type"] in ("LoraLoader", "LoraLoaderModelOnly"):
            inputs["lora_name"] = _existing_lora(host, erase_graph)
        elif "lora" in inputs and "lora_name" not in inputs:
            inputs["lora"] = _existing_lora(host, erase_graph)
    history = host.run(prompt)
    assert history["status"]["completed"]
    assert outputs <= set(history["outputs"])  # Wait shows its job too, though it is no output node
    for node_id in outputs:
        for image in history["outputs"][node_id].get("images", []):
            query = f"filename={image['filename']}&subfolder={image['subfolder']}&type={image['type']}"
            status, data = host.request("GET", f"/view?{query}")
            assert status == 200
            assert len(data) > 1000


def _existing_lora(host, erase_graph) -> str:
    """A workflow that uses an existing LoRA is given one that this server has."""
    if not (host.base / "models" / "loras" / "for-examples.safetensors").exists():
        host.run(erase_graph("car", "for-examples", steps=2, sample_every=0))
    return "for-examples.safetensors"
