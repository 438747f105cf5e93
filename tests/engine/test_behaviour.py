"""What the engine computes stays what it was: small trainings, a picture, a merge and chosen words beside stored ones.

Who changes them on purpose raises `training.BEHAVIOUR` and records anew: `python -m tests.engine.test_behaviour`. The
tolerances are ten times what other instruction sets of one CPU differ by in fp32 (`ATEN_CPU_CAPABILITY=default`).
`scripts/compare_revisions.py` compares two revisions on one machine to the last bit.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer

from scripts.compare_revisions import SMALL, TRAININGS
from scripts.environment import install_wordnet
from training import BEHAVIOUR
from training.cli import main
from training.concepts import erase_prompts, make_concept, vocabulary_of
from training.lora.files import merge_files
from training.lora.format import read_lora
from training.models.source import demo_model_folder

DATA = Path(__file__).parents[1] / "data"
STORED, WORDS = DATA / "behaviour.safetensors", DATA / "behaviour_words.json"
# GEM is left out: its hinge lies at its own kink while the LoRA is still zero, so that rounding decides the direction.
CHECKED = ("eraseanything", "one-level", "esd", "concept_ablation", "style", "relation")
PROBES = 4  # random inputs on which a layer's change is compared
CHANGE = 0.02  # relative error of what a LoRA changes
PIXELS = 0.5  # mean difference of a picture in its 256 levels


def changes(lora: Path) -> Iterator[tuple[str, Tensor]]:
    """(layer, its change on PROBES fixed random inputs [out, PROBES]) of a LoRA."""
    for number, (module, (a, b, alpha)) in enumerate(sorted(read_lora(lora)[0].items())):
        inputs = torch.randn(a.shape[1], PROBES, generator=torch.Generator().manual_seed(number))
        yield module, alpha / len(a) * (b @ (a @ inputs))


def computed(folder: Path) -> dict[str, Tensor]:
    """What this code computes, by name."""
    found: dict[str, Tensor] = {}
    for name in CHECKED:
        concept, settings = TRAININGS[name]
        chosen = [part for key, value in {**SMALL, **settings}.items() for part in ("--set", f"{key}={value}")]
        source = ["--source", str(demo_model_folder()), "--device", "cpu", "--precision", "fp32", "--seed", "0"]
        named = ["--out", str(folder), "--name", name, "--no-measure"]
        assert main(["train", *source, "--concept", *concept, *named, *chosen]) == 0
        found |= {f"{name}/{layer}": change for layer, change in changes(folder / f"{name}.safetensors")}
    files = [folder / f"{name}.safetensors" for name in ("eraseanything", "style")]
    merge_files(files, folder / "merged.safetensors")
    found |= {f"merged/{layer}": change for layer, change in changes(folder / "merged.safetensors")}
    picture = sorted((folder / "eraseanything.training" / "samples").glob("step-000004-p0-*.png"))[0]
    found["picture"] = torch.from_numpy(np.asarray(Image.open(picture)).copy())
    return found


def chosen_words() -> dict[str, object]:
    """The words and prompts that are chosen by themselves, with the demo model's words and without a vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model_folder() / "tokenizer_2", local_files_only=True)
    found: dict[str, object] = {}
    for phrase, kind in (
        ("car", "entity"),
        ("golf ball", "entity"),
        ("Van Gogh", "abstraction"),
        ("Tom Hanks", "entity"),
        ("hug", "relationship"),
        ("nudity", "entity"),
    ):
        concept = make_concept(phrase, kind)
        nouns = concept.irrelevant if kind == "entity" else ("dog", "cat", "boat")
        asked = erase_prompts(concept.names(), concept.template, kind, nouns, 24, 0)
        found[phrase] = {**concept.to_dict(), "asked": [list(prompt) for prompt in asked]}
    known = vocabulary_of(tokenizer)
    for phrase in ("car", "penguin"):
        found[f"{phrase}, demo"] = make_concept(phrase, vocabulary=known).to_dict()
    return json.loads(json.dumps(found))


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[str, Tensor]:
    return computed(tmp_path_factory.mktemp("behaviour"))


def test_the_number_is_that_of_what_is_stored() -> None:
    with safe_open(STORED, "pt") as file:
        stored = file.metadata()["behaviour"]
    assert stored == str(BEHAVIOUR), "record anew: python -m tests.engine.test_behaviour"


@pytest.mark.parametrize("name", [*CHECKED, "merged"])
def test_what_is_learnt_stays_what_it_was(name: str, now: dict[str, Tensor]) -> None:
    with safe_open(STORED, "pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys() if key.startswith(f"{name}/")}  # noqa: SIM118
    mine = {key: change for key, change in now.items() if key.startswith(f"{name}/")}
    assert mine.keys() == stored.keys()
    lost = sum(float((mine[key] - stored[key]).square().sum()) for key in stored) ** 0.5
    assert lost < CHANGE * sum(float(change.square().sum()) for change in stored.values()) ** 0.5


def test_a_picture_stays_what_it_was(now: dict[str, Tensor]) -> None:
    with safe_open(STORED, "pt") as file:
        stored = file.get_tensor("picture")
    assert float((now["picture"].float() - stored.float()).abs().mean()) < PIXELS


def test_words_are_chosen_as_they_were() -> None:
    assert chosen_words() == json.loads(WORDS.read_text(encoding="utf-8"))


def record() -> None:
    """Stores what this code computes in place of what is stored."""
    install_wordnet()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        DATA.mkdir(exist_ok=True)
        save_file(computed(Path(folder)), STORED, metadata={"behaviour": str(BEHAVIOUR)})
    WORDS.write_text(json.dumps(chosen_words(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
