"""The training loop on a tiny Flux: what it writes, stopping, resuming bit by bit, and what can go wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.flux_models import tiny_folder
from training import checkpoint as checkpoints
from training import trainer
from training.bank import read_tensors, write_tensors
from training.concepts import Concept
from training.errors import CheckpointError, ConceptError, ConfigError
from training.lora.format import KEY_BASE, KEY_CONCEPT, KEY_CONFIG, read_lora
from training.methods.base import Term
from training.methods.eraseanything import EraseAnything
from training.models.source import FluxSource
from training.request import ErasureRequest
from training.settings import ErasureConfig
from training.updates import TrainingDiverged

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")
CONCEPT = Concept(
    "car",
    synonyms=("automobile",),
    irrelevant=("dog", "apple", "bus"),
    preserve=("", "a dog", "a photo of an apple", "a red bus"),
)
CONFIG = ErasureConfig(
    steps=6,
    rank=2,
    alpha=2.0,
    erase_prompts=4,
    batch_erase=2,
    batch_preserve=2,
    sampling_steps=3,
    t_min=0.0,
    weight_rsc=0.01,
    resolution=64,
    checkpoint_every=2,
    sample_every=3,
    sample_count=1,
)


def request(flux: FluxSource, out: Path, config: ErasureConfig = CONFIG, concept: Concept = CONCEPT) -> ErasureRequest:
    return ErasureRequest(flux, concept, config, "erase-car", str(out), "cpu")


def train(
    flux: FluxSource, out: Path, config: ErasureConfig = CONFIG, concept: Concept = CONCEPT, stop_after: int = 10**9
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(result, events) of a training in out/job; Stopped after `stop_after` steps."""
    events: list[dict[str, Any]] = []
    stop = lambda: any(e["type"] == "step" and e["step"] >= stop_after for e in events)  # noqa: E731
    return trainer.run(request(flux, out, config, concept), out / "job", events.append, stop), events


def assert_same_lora(first: str | Path, second: str | Path) -> None:
    """Bit by bit the same tensors, and the same metadata (whose order in the file safetensors leaves to chance)."""
    (a, facts_a), (b, facts_b) = read_lora(first), read_lora(second)
    assert list(a) == list(b) and facts_a == facts_b
    for module in a:
        assert torch.equal(a[module][0], b[module][0]) and torch.equal(a[module][1], b[module][1])
        assert a[module][2] == b[module][2]


@pytest.fixture(scope="module")
def whole(flux: FluxSource, tmp_path_factory: pytest.TempPathFactory):
    """An uninterrupted training: (folder, result, events)."""
    out = tmp_path_factory.mktemp("whole")
    return (out, *train(flux, out))


def test_a_training_writes_its_lora_samples_and_events(whole, flux: FluxSource):
    out, result, events = whole
    weights, metadata = read_lora(result["lora"])
    assert result["lora"] == str(out / "erase-car.safetensors") and result["steps"] == 6
    assert sorted(weights) == [f"transformer_blocks.{i}.attn.add_{p}_proj" for i in (0, 1) for p in "kq"]
    assert all(a.shape == (2, 64) and b.shape == (64, 2) and alpha == 2.0 for a, b, alpha in weights.values())
    assert all(b.abs().max() > 0 for _, b, _ in weights.values())
    assert metadata[KEY_BASE] == flux.fingerprint()
    assert Concept.from_dict(json.loads(metadata[KEY_CONCEPT])) == CONCEPT
    assert ErasureConfig.from_dict(json.loads(metadata[KEY_CONFIG])) == CONFIG.for_kind("entity")

    steps = [e for e in events if e["type"] == "step"]
    assert [e["step"] for e in steps] == [1, 2, 3, 4, 5, 6] and all(e["total"] == 6 for e in steps)
    assert all(set(e["losses"]) == {"esd", "attn", "lora", "rsc"} and e["seconds_per_step"] > 0 for e in steps)
    assert [e["step"] for e in events if e["type"] == "checkpoint"] == [2, 4, 6]
    samples = [e for e in events if e["type"] == "sample"]
    assert [(e["step"], e["prompt"]) for e in samples[:3]] == [
        (0, "a photo of a car"),
        (0, "a photo of an automobile"),
        (0, "a photo of a bus"),
    ]
    assert sorted({e["step"] for e in samples}) == [0, 3, 6]
    for event in samples:
        assert Image.open(out / "job" / event["file"]).size == (64, 64)
    assert events[-1]["type"] == "completed" and events[-1]["lora"] == result["lora"]
    phases = [e["phase"] for e in events if e["type"] == "phase"]
    assert list(dict.fromkeys(phases)) == ["encode", "bank", "samples", "train", "save"]
    assert len(list((out / "job" / "checkpoints").iterdir())) == CONFIG.keep_checkpoints
    assert not [p for p in out.rglob("*") if p.name.endswith(".part")]


def test_the_same_seed_gives_the_same_lora_and_another_does_not(whole, flux: FluxSource, tmp_path: Path):
    again, _ = train(flux, tmp_path / "again", dataclasses.replace(CONFIG, sample_every=0))
    other, _ = train(flux, tmp_path / "other", dataclasses.replace(CONFIG, seed=1))
    a, b = read_lora(whole[1]["lora"])[0], read_lora(again["lora"])[0]
    assert all(torch.equal(a[m][0], b[m][0]) and torch.equal(a[m][1], b[m][1]) for m in a)
    with pytest.raises(AssertionError):
        assert_same_lora(whole[1]["lora"], other["lora"])


def test_stopping_keeps_a_checkpoint_and_going_on_ends_the_same(whole, flux: FluxSource, tmp_path: Path):
    with pytest.raises(trainer.Stopped):
        train(flux, tmp_path, stop_after=3)
    assert checkpoints.latest_checkpoint(tmp_path / "job" / "checkpoints").step == 3
    assert not (tmp_path / "erase-car.safetensors").exists()
    result, events = train(flux, tmp_path)
    assert [e["step"] for e in events if e["type"] == "step"] == [4, 5, 6]
    assert_same_lora(result["lora"], whole[1]["lora"])


def test_kill_9_and_resume_is_bit_identical(whole, flux: FluxSource, tmp_path: Path):
    """The worker is killed between two checkpoints, so that steps are lost and done again."""
    job = tmp_path / "job"
    job.mkdir()
    (tmp_path / "request.json").write_text(json.dumps(request(flux, tmp_path).to_dict()))
    (tmp_path / "work.py").write_text(
        "import json, pathlib, sys, torch\n"
        "torch.set_num_threads(1)\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from training import trainer\n"
        "from training.request import ErasureRequest\n"
        "here = pathlib.Path(__file__).parent\n"
        "request = ErasureRequest.from_dict(json.loads((here / 'request.json').read_text()))\n"
        "def report(event):\n"
        "    if event['type'] == 'step':\n"
        "        (here / 'step').write_text(str(event['step']))\n"
        "        if event['step'] == int(sys.argv[1]):\n"
        "            __import__('time').sleep(600)\n"
        "trainer.run(request, here / 'job', report)\n"
    )
    process = subprocess.Popen([sys.executable, tmp_path / "work.py", "5"])
    try:
        deadline = time.monotonic() + 240
        while not ((tmp_path / "step").exists() and (tmp_path / "step").read_text() == "5"):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        if os.name == "posix":
            os.kill(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
    assert checkpoints.latest_checkpoint(job / "checkpoints").step == 4
    assert not (tmp_path / "erase-car.safetensors").exists()
    subprocess.run([sys.executable, tmp_path / "work.py", "0"], check=True, timeout=240)
    assert_same_lora(tmp_path / "erase-car.safetensors", whole[1]["lora"])


def test_a_bank_refreshed_by_the_student_survives_stopping(whole, flux: FluxSource, tmp_path: Path):
    config = dataclasses.replace(CONFIG, refresh_every=2, sample_every=0)
    expected, _ = train(flux, tmp_path / "expected", config)
    with pytest.raises(trainer.Stopped):
        train(flux, tmp_path, config, stop_after=3)
    kept = checkpoints.latest_checkpoint(tmp_path / "job" / "checkpoints")
    assert kept.step == 3 and set(kept.bank) == {f"erase.{name}" for name in ("row", "t", "x", "own", "empty")}
    result, _ = train(flux, tmp_path, config)
    assert_same_lora(result["lora"], expected["lora"])
    a, b = read_lora(whole[1]["lora"])[0], read_lora(result["lora"])[0]
    assert any(not torch.equal(a[m][1], b[m][1]) for m in a)  # the refreshed points were used


def test_stopping_in_a_refresh_keeps_the_steps_before_it(flux: FluxSource, tmp_path: Path):
    config = dataclasses.replace(CONFIG, refresh_every=2, sample_every=0, checkpoint_every=100)
    expected, _ = train(flux, tmp_path / "expected", config)
    events: list[dict[str, Any]] = []
    asked = []

    def stop() -> bool:
        asked.extend(e["step"] for e in events[-1:] if e["type"] == "step" and e["step"] == 2)
        return len(asked) > 1  # the first time before the step, the second inside the refresh

    with pytest.raises(trainer.Stopped):
        trainer.run(request(flux, tmp_path, config), tmp_path / "job", events.append, stop)
    kept = checkpoints.latest_checkpoint(tmp_path / "job" / "checkpoints")
    assert kept.step == 2 and not kept.bank
    result, _ = train(flux, tmp_path, config)
    assert_same_lora(result["lora"], expected["lora"])


def test_a_loss_out_of_the_loras_reach_is_one_sentence(flux: FluxSource, tmp_path: Path):
    config = dataclasses.replace(CONFIG, blocks=(1,), capture_blocks=(0,), weight_lora=0.0, weight_rsc=1.0)
    with pytest.raises(ConfigError, match="No preserve loss depends on the LoRA"):
        train(flux, tmp_path, config)


def test_a_finished_training_writes_its_lora_again_without_steps(whole, flux: FluxSource, tmp_path: Path):
    shutil.copytree(whole[0] / "job", tmp_path / "job")
    result, events = train(flux, tmp_path)
    assert not [e for e in events if e["type"] == "step"]
    assert_same_lora(result["lora"], whole[1]["lora"])


def test_checkpoints_of_another_base_or_concept_are_refused_and_kept(whole, demo_folder: Path, flux, tmp_path: Path):
    shutil.copytree(whole[0] / "job", tmp_path / "job")
    before = sorted(p.name for p in (tmp_path / "job" / "checkpoints").iterdir())
    other = FluxSource("diffusers", folder=str(tiny_folder(demo_folder, tmp_path / "other", seed=1)), precision="fp32")
    with pytest.raises(CheckpointError, match="another base model"):
        train(other, tmp_path)
    with pytest.raises(CheckpointError, match="another concept or other settings"):
        train(flux, tmp_path, dataclasses.replace(CONFIG, eta=2.0))
    assert sorted(p.name for p in (tmp_path / "job" / "checkpoints").iterdir()) == before


def cut_short(data: bytes) -> bytes:
    return data[:100]


def one_bit_flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("damage", [cut_short, one_bit_flipped])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole, flux: FluxSource, tmp_path: Path, damage):
    shutil.copytree(whole[0] / "job", tmp_path / "job")
    newest = sorted((tmp_path / "job" / "checkpoints").iterdir())[-1]
    newest.write_bytes(damage(newest.read_bytes()))
    result, events = train(flux, tmp_path)
    assert [e["step"] for e in events if e["type"] == "step"] == [5, 6]
    notices = [e["message"] for e in events if e["type"] == "notice"]
    assert notices == ["The checkpoint of step 6 cannot be read: going on from step 4."]
    assert_same_lora(result["lora"], whole[1]["lora"])


@pytest.mark.parametrize("damage", [cut_short, one_bit_flipped])
def test_a_damaged_bank_is_made_again(whole, flux: FluxSource, tmp_path: Path, damage):
    shutil.copytree(whole[0] / "job", tmp_path / "job")
    sorted((tmp_path / "job" / "checkpoints").iterdir())[-1].unlink()
    bank = tmp_path / "job" / "bank.safetensors"
    tensors, metadata = read_tensors(bank)
    if damage is cut_short:
        bank.write_bytes(damage(bank.read_bytes()))
    else:
        tensors["erase.x"][0, 0, 0] += 1
        write_tensors(bank, tensors, metadata, "bank")
    result, events = train(flux, tmp_path)
    assert [e["step"] for e in events if e["type"] == "step"] == [5, 6]
    assert next(e["message"] for e in events if e["type"] == "notice").endswith("it is made again.")
    assert_same_lora(result["lora"], whole[1]["lora"])


def test_a_bank_of_other_prompts_is_not_used(whole, flux: FluxSource, tmp_path: Path):
    """Another version of the pack may ask for a concept in other ways: its rows are not this version's."""
    shutil.copytree(whole[0] / "job", tmp_path / "job")
    bank, folder = tmp_path / "job" / "bank.safetensors", tmp_path / "job" / "checkpoints"
    tensors, metadata = read_tensors(bank)
    texts = json.loads(metadata["prompts"])
    write_tensors(bank, tensors, {**metadata, "prompts": json.dumps([*texts[:-1], "a photo of an auto"])}, "bank")
    with pytest.raises(CheckpointError, match="began with other prompts"):
        train(flux, tmp_path)
    assert len(list(folder.iterdir())) == 2 and bank.is_file()
    shutil.rmtree(folder)
    result, events = train(flux, tmp_path)
    assert "bank" in {e.get("phase") for e in events}
    assert_same_lora(result["lora"], whole[1]["lora"])


def test_where_no_checkpoint_can_be_read_nothing_is_overwritten(whole, flux: FluxSource, tmp_path: Path):
    shutil.copytree(whole[0] / "job", tmp_path / "job")
    files = sorted((tmp_path / "job" / "checkpoints").iterdir())
    for file in files:
        file.write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"step-0*6\.safetensors cannot be read"):
        train(flux, tmp_path)
    assert [file.read_bytes() for file in files] == [b"junk"] * len(files)


@pytest.mark.parametrize("term", ["esd", "lora"])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    flux: FluxSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, term: str
):
    calls = []

    class Diverging(EraseAnything):
        def losses(self, level, flow, generator):
            calls.append(level)
            terms = super().losses(level, flow, generator)
            bad = float("nan") if len(calls) > 6 else 1.0
            return [Term(t.name, t.value * bad, t.weight) if t.name == term else t for t in terms]

    monkeypatch.setattr("training.methods.METHODS", {"eraseanything": Diverging})
    with pytest.raises(TrainingDiverged, match=f'"{term}" is no longer a number after step 3'):
        train(flux, tmp_path)
    kept = checkpoints.latest_checkpoint(tmp_path / "job" / "checkpoints")
    assert kept.step == 2 and all(torch.isfinite(b).all() for _, b, _ in kept.lora.values())
    assert not (tmp_path / "erase-car.safetensors").exists()


def test_a_checkpoint_that_is_not_finite_is_refused(whole, tmp_path: Path):
    good = checkpoints.latest_checkpoint(whole[0] / "job" / "checkpoints")
    name = next(iter(good.lora))
    a, b, alpha = good.lora[name]
    bad = dataclasses.replace(good, lora={**good.lora, name: (a, b * float("inf"), alpha)})
    with pytest.raises(CheckpointError, match="no longer finite"):
        checkpoints.write_checkpoint(tmp_path, bad)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("concept", "message"),
    [
        (dataclasses.replace(CONCEPT, phrase="猫", synonyms=()), "does not know"),
        (dataclasses.replace(CONCEPT, template=" ".join(["photo"] * 40) + " {}"), "beyond the 32 tokens"),
        (dataclasses.replace(CONCEPT, phrase=""), "empty"),
    ],
)
def test_concepts_that_the_model_cannot_take(flux: FluxSource, tmp_path: Path, concept: Concept, message: str):
    with pytest.raises(ConceptError, match=message):
        train(flux, tmp_path, concept=concept)


def test_no_preservation_leaves_one_level(flux: FluxSource, tmp_path: Path):
    config = dataclasses.replace(CONFIG, weight_lora=0.0, weight_rsc=0.0, steps=2, sample_every=0)
    _, events = train(flux, tmp_path, config)
    assert [set(e["losses"]) for e in events if e["type"] == "step"] == [{"esd", "attn"}] * 2


def test_blocks_and_targets_are_those_asked_for(flux: FluxSource, tmp_path: Path):
    config = dataclasses.replace(CONFIG, blocks=(1,), targets="text_qkv", steps=1, sample_every=0)
    result, _ = train(flux, tmp_path, config)
    weights, _ = read_lora(result["lora"])
    assert sorted(weights) == [f"transformer_blocks.1.attn.add_{p}_proj" for p in "kqv"]
    with pytest.raises(ConfigError, match="blocks"):
        train(flux, tmp_path / "none", dataclasses.replace(config, blocks=(7,)))


@pytest.mark.parametrize("method", ["eraseanything", "esd"])
def test_single_blocks_can_be_the_target(flux: FluxSource, tmp_path: Path, method: str):
    config = dataclasses.replace(CONFIG, method=method, targets="single_qk", steps=2, sample_every=0)
    result, _ = train(flux, tmp_path, config)
    weights, _ = read_lora(result["lora"])
    assert sorted(weights) == [f"single_transformer_blocks.0.attn.to_{p}" for p in "kq"]
    assert all(b.abs().max() > 0 for _, b, _ in weights.values())


def test_a_full_disk_is_one_sentence(flux: FluxSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.bank.save_file", full)
    with pytest.raises(CheckpointError, match="free some space"):
        train(flux, tmp_path)
    assert not list((tmp_path / "job").glob(".*"))


def test_a_training_that_has_settled_ends(flux: FluxSource, tmp_path: Path):
    config = dataclasses.replace(CONFIG, steps=200, early_stopping=20, sample_every=0, checkpoint_every=15)
    config = dataclasses.replace(config, lr_erase=3e-2, eta=0.0, alpha=8.0, weight_attn=0.0)
    result, events = train(flux, tmp_path / "whole", config)
    measured = {e["step"]: e["residue"] for e in events if "residue" in e}
    assert list(measured) == list(range(10, result["steps"] + 1, 10)) and 20 <= result["steps"] < 200
    least, at = 1.0, 0
    for step, residue in measured.items():
        if residue < 0.98 * least:
            least, at = residue, step
        assert step - at < 20 or step == result["steps"]  # it ends at the first chance, and at no other
    assert at > 0 and least < 0.98  # something was learnt
    assert any(e["type"] == "notice" and f"since step {at}" in e["message"] for e in events)
    assert [e["step"] for e in events if e["type"] == "checkpoint"][-1] == result["steps"]
    # a resumed training measures on, and ends at the same step with the same LoRA
    with pytest.raises(trainer.Stopped):
        train(flux, tmp_path / "parts", config, stop_after=17)
    resumed, events = train(flux, tmp_path / "parts", config)
    assert resumed["steps"] == result["steps"] and min(e["step"] for e in events if e["type"] == "step") == 18
    assert_same_lora(result["lora"], resumed["lora"])
    # killed after its last checkpoint, it only writes the LoRA
    again, events = train(flux, tmp_path / "parts", config)
    assert again["steps"] == result["steps"] and not [e for e in events if e["type"] == "step"]
