"""Taps on the host's own Flux: what they record, delete and leave alone, against the engine and naive formulas."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts.host import SHIM_FOLDER
from tests.support.flux_models import demo_parts
from training.inspection.capture import encode_concepts, noised, record_concepts, record_pass
from training.models.sampling import initial_noise, pack

PROMPT = "a cat next to a car on a blue background"
TEXT, IMAGE, BLOCKS = 32, 64, 6


@pytest.fixture(scope="module")
def schnell(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model without its guidance embedding, as Flux.1 schnell has none."""
    folder = tmp_path_factory.mktemp("models") / "schnell"
    shutil.copytree(demo_folder, folder, ignore=shutil.ignore_patterns("classifier"))
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "guidance_embeds": False}))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = {name: tensor for name, tensor in load_file(weights).items() if "guidance_embedder" not in name}
    save_file(state, weights)
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["sub-quadratic", "pytorch"])
def probe(
    request: pytest.FixtureRequest,
    demo_folder: Path,
    schnell: Path,
    host_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict:
    """What attention_probe.py found, under both attention functions that the host has on every computer."""
    folder = tmp_path_factory.mktemp("attention")
    asked = {
        "folder": str(demo_folder),
        "schnell": str(schnell),
        "prompt": PROMPT,
        "pytorch_attention": request.param,
    }
    (folder / "probe.json").write_text(json.dumps(asked))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "attention_probe.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SHIM_FOLDER), str(host_folder)])},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    facts = json.loads((folder / "result.json").read_text())
    assert facts["attention"] == ("attention_pytorch" if request.param else "attention_sub_quad")
    return {**load_file(folder / "result.safetensors"), "facts": facts}


def test_the_picture_stays_as_it_is(probe: dict) -> None:
    torch.testing.assert_close(probe["recorded"], probe["plain"], rtol=0, atol=1e-5)
    assert torch.equal(probe["base_after"], probe["plain"])


def test_what_is_recorded(probe: dict) -> None:
    facts, maps = probe["facts"], probe["maps"]
    assert maps.shape == (4, BLOCKS, 1, 2, TEXT, IMAGE) and maps.dtype == torch.float16
    assert facts["names"] == ["0", "1", "2", "s0", "s1", "s2"]
    assert facts["times"] == pytest.approx([1.0, 0.75, 0.5, 0.25], abs=1e-3)
    assert facts["unit"] == TEXT + IMAGE
    torch.testing.assert_close(maps.float().mean(3, keepdim=True), probe["mean"].float(), rtol=2e-3, atol=1e-4)
    assert facts["tokens_5"] == [4, 2, 1, 1, 5, IMAGE]
    assert facts["range"] == pytest.approx([0.75, 0.5], abs=1e-3)


def test_host_and_engine_give_the_same_maps(probe: dict, demo_folder: Path) -> None:
    """Inspect Image at t = 0.6 and seed 9, and the first step of sampling."""
    parts = demo_parts(demo_folder)
    grid, config = parts.variant.grid, parts.vae.config
    embeds = parts.text.encode(PROMPT)
    with torch.no_grad():
        raw = parts.vae.encode(probe["image"].permute(0, 3, 1, 2) * 2 - 1).latent_dist.mode()
    x_t = noised(pack((raw - config.shift_factor) * config.scaling_factor), initial_noise(9, grid), 0.6)
    for found, latents, t in ((probe["inspected"], x_t, 0.6), (probe["maps"][:1], initial_noise(5, grid), 1.0)):
        expected = record_pass(parts.transformer, latents, t, embeds, 3.5, grid, range(BLOCKS)).maps.float()
        assert found.shape == expected.shape
        assert (found.float() - expected).norm() / expected.norm() < 1e-3
        assert (found.float() - expected).abs().max() / expected.max() < 1e-3


def test_host_and_engine_give_the_same_concept_maps(probe: dict, demo_folder: Path) -> None:
    parts = demo_parts(demo_folder)
    labels = ["cat", "penguin", "background"]
    kind, found_labels = probe["facts"]["concepts"]
    assert kind == "output" and found_labels == labels and probe["facts"]["concepts_drawn"] == [3, 128, 128, 3]
    torch.testing.assert_close(probe["concepts_picture"], probe["cfg_plain"], rtol=0, atol=1e-5)
    grid, embeds = parts.variant.grid, parts.text.encode(PROMPT)
    vectors = encode_concepts(parts.text, labels)
    latents = initial_noise(5, grid)
    expected = record_concepts(parts.transformer, latents, 1.0, embeds, 3.5, grid, range(3), labels, vectors).maps
    assert probe["concepts"].shape == (4, 3, 1, 1, 3, IMAGE)
    torch.testing.assert_close(probe["concepts"][:1].float(), expected.float(), rtol=1e-3, atol=1e-3)


def test_negative_prompts_and_batches(probe: dict) -> None:
    """Only the positive prompt's rows are recorded: at the first step they do not depend on the rest."""
    first = probe["mean"][:1]
    assert probe["cfg"].shape == probe["mean"].shape
    torch.testing.assert_close(probe["cfg"][:1].float(), first.float(), rtol=2e-3, atol=1e-3)
    assert probe["batch"].shape == (4, BLOCKS, 2, 1, TEXT, IMAGE)
    torch.testing.assert_close(probe["batch"][:1, :, :1].float(), first.float(), rtol=2e-3, atol=1e-3)
    assert (probe["batch"][:1, :, 1:].float() - first.float()).abs().max() > 0.1  # another noise


def test_sizes_references_and_schnell(probe: dict) -> None:
    facts = probe["facts"]
    assert facts["wide"] == [[8, 12], [4, BLOCKS, 1, 1, TEXT, 96]]
    assert facts["odd"] == [[8, 9], [4, BLOCKS, 1, 1, TEXT, 72]]
    assert facts["reference"] == [TEXT + 2 * IMAGE, [4, BLOCKS, 1, 1, TEXT, IMAGE]]
    assert facts["schnell"] == [4, BLOCKS, 1, 1, TEXT, IMAGE]
    # two passes a step, of which the second is at the next step's t: one map for each t
    assert facts["heun"] == pytest.approx([1.0, 0.75, 0.5, 0.25], abs=1e-3)


def test_other_packs_overrides_keep_working(probe: dict) -> None:
    facts = probe["facts"]
    for name in ("inner", "outer"):
        torch.testing.assert_close(probe[f"{name}_override"], probe["override_alone"], rtol=0, atol=1e-5)
        assert facts[f"{name}_calls"] == 4 * BLOCKS
        assert probe[f"{name}_maps"].shape == probe["mean"].shape
    torch.testing.assert_close(probe["inner_maps"].float(), probe["outer_maps"].float(), rtol=2e-3, atol=1e-3)
    assert (probe["override_alone"] - probe["plain"]).abs().max() > 1e-2
    assert facts["through_clones"] == 4


def test_deletion_is_its_formula(probe: dict) -> None:
    torch.testing.assert_close(probe["deleted_plain"], probe["deleted_naive"], rtol=0, atol=1e-4)
    assert (probe["deleted_plain"] - probe["plain"]).abs().max() > 1e-2
    assert (probe["deleted"] - probe["deleted_plain"]).abs().max() > 1e-2  # guidance away from a negative prompt
    assert probe["facts"]["record_on_deletion"] == 4
    assert probe["facts"]["absent_is_base"] is True


def test_one_clear_sentence(probe: dict) -> None:
    refusals = probe["facts"]["refusals"]
    expected = {
        "two prompts": "one positive prompt",
        "mask": "attention mask",
        "blocks": "names no block",
        "range": "must not be below",
        "empty": "Nothing was recorded",
        "no phrase": "no phrase to hide",
        "one concept": "at least two",
        "no clip": "connect the CLIP",
        "single": "live in the double blocks",
    }
    assert refusals.keys() == expected.keys()
    for name, part in expected.items():
        assert part in refusals[name]


def test_words_and_memory(probe: dict) -> None:
    texts, length = probe["facts"]["weighted"]
    assert texts == ["a", "red", "car", ",", "a", "(", "cat", ")"]
    assert length == TEXT
    assert probe["facts"]["freed"] is True
