"""The command line: a training of a few steps on the demo model, resuming it, and mistakes in the arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training import cli
from training.errors import ConfigError
from training.lora.format import KEY_CONCEPT, read_lora

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "--set", "erase_prompts=2", "--set", "preserve_prompts=2", "--set", "sampling_steps=2", "--set", "sample_every=0",
    "--set", "rank=2", "--set", "batch_preserve=2", "--set", "batch_erase=2",
]  # fmt: skip


def test_train_and_resume_end_with_one_json_object(demo_folder: Path, tmp_path: Path):
    command = [
        sys.executable, "-m", "training.cli", "train", "--source", str(demo_folder), "--concept", "car", "--out",
        str(tmp_path), "--steps", "2", *SETTINGS,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["lora"] == str(tmp_path / "erase-car.safetensors") and result["steps"] == 2
    assert "2/2" in done.stderr  # the progress bar
    weights, metadata = read_lora(result["lora"])
    concept = json.loads(metadata[KEY_CONCEPT])
    assert weights and set(concept["synonyms"]) == {
        "auto",
        "automobile",
        "motorcar",
    }  # of WordNet's four, those this model knows
    Path(result["lora"]).unlink()

    assert cli.main(["resume", "--out", str(tmp_path)]) == 0
    again, facts = read_lora(result["lora"])
    assert facts == metadata and all(torch.equal(again[m][1], weights[m][1]) for m in weights)


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(list(arguments))
    return code, capsys.readouterr().err


def test_mistakes_are_one_sentence(demo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def train(*more: str, source: str = str(demo_folder), concept: str = "car") -> tuple[int, str]:
        return run_main(capsys, "train", "--source", source, "--concept", concept, "--out", str(tmp_path), *more)

    for code, message in (
        train(source=str(tmp_path / "nothing")),
        train(concept="  "),
        train("--set", "steps=many"),
        train("--set", "steps"),
        train("--set", "colour=red"),
        train("--name", "../car"),
        train("--template", "a photo"),
        run_main(capsys, "resume", "--out", str(tmp_path)),
    ):
        assert code == 1
        assert message.startswith("error: ") and message.strip().count("\n") == 0 and "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


def test_settings_are_json_where_they_can_be():
    assert cli.read_settings(["steps=7", "lr_erase=1e-3", "shuffle=false", "blocks=[0,1]", "targets=text_qk"]) == {
        "steps": 7,
        "lr_erase": 1e-3,
        "shuffle": False,
        "blocks": [0, 1],
        "targets": "text_qk",
    }
    with pytest.raises(ConfigError):
        cli.read_settings(["steps"])
