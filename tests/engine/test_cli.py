"""The command line: a training of a few steps on the demo model, resuming and measuring it, mistakes in arguments."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training import cli
from training.concepts import Concept
from training.errors import ConfigError
from training.lora.format import KEY_CONCEPT, make_metadata, read_lora, write_lora
from training.models.source import FluxSource
from training.request import ErasureRequest
from training.settings import ErasureConfig

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "--set",
    "erase_prompts=2",
    "--set",
    "preserve_prompts=2",
    "--set",
    "sampling_steps=2",
    "--set",
    "sample_every=0",
    "--set",
    "rank=2",
    "--set",
    "batch_preserve=2",
    "--set",
    "batch_erase=2",
]


def test_train_and_resume_end_with_one_json_object(demo_folder: Path, tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "training.cli",
        "train",
        "--source",
        str(demo_folder),
        "--concept",
        "car",
        "--out",
        str(tmp_path),
        "--steps",
        "2",
        "--no-measure",
        *SETTINGS,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["lora"] == str(tmp_path / "erase-car.safetensors") and result["steps"] == 2
    assert all(result[name] is None for name in ("acc_e", "acc_g", "acc_ir")) and result["seconds"] > 0
    assert "2/2" in done.stderr  # the progress bar
    weights, metadata = read_lora(result["lora"])
    concept = json.loads(metadata[KEY_CONCEPT])
    assert weights and set(concept["synonyms"]) == {
        "auto",
        "automobile",
        "motorcar",
    }  # of WordNet's four, those this model knows
    Path(result["lora"]).unlink()

    assert cli.main(["resume", "--out", str(tmp_path), "--no-measure"]) == 0
    again, facts = read_lora(result["lora"])
    assert facts == metadata and all(torch.equal(again[m][1], weights[m][1]) for m in weights)


def lora_of(folder: Path, path: Path, phrase: str, size: float = 1.0) -> Path:
    """A LoRA for the model's image queries, of random numbers as large as `size`, that says it erases `phrase`."""
    shape = json.loads((folder / "transformer" / "config.json").read_text())
    width, draw = shape["num_attention_heads"] * shape["attention_head_dim"], torch.Generator().manual_seed(0)
    weights = {
        f"transformer_blocks.{block}.attn.to_q": (
            torch.randn(2, width, generator=draw),
            size * torch.randn(width, 2, generator=draw),
            2.0,
        )
        for block in range(shape["num_layers"])
    }
    concept = Concept(phrase, synonyms=("automobile",), irrelevant=("dog",), preserve=("a dog",)).to_dict()
    metadata = make_metadata(concept=concept, method="esd", base="", config={}, metrics={}, version="0")
    write_lora(path, weights, metadata)
    return path


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


@pytest.mark.parametrize("size", [0.0, 30.0])
def test_evaluate_measures_the_concept_that_the_lora_names(demo_folder: Path, tmp_path: Path, capsys, size: float):
    """A LoRA of zeros changes nothing; one of large numbers leaves no car to be seen."""
    lora = lora_of(demo_folder, tmp_path / "car.safetensors", "car", size)
    arguments = ["--source", str(demo_folder), "--lora", str(lora), "--images", "4", "--images-per-other", "0"]
    assert cli.main(["evaluate", *arguments]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    base = result.pop("base")
    shares = {name: result.pop(name) for name in ("acc_e", "acc_g", "acc_ir")}
    assert result == {"lora": str(lora)}
    assert base["acc_e"] > 0.5 and base["acc_g"] > 0.5 and base["acc_ir"] is None  # no image, no share
    assert shares == (base if size == 0 else {"acc_e": 0.0, "acc_g": 0.0, "acc_ir": None})


def test_what_cannot_be_measured_is_one_sentence_and_null_after_a_training(demo_folder: Path, tmp_path: Path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(demo_folder, bare, ignore=shutil.ignore_patterns("classifier"))
    car, unknown = (lora_of(demo_folder, tmp_path / f"{name}.safetensors", name) for name in ("car", "sadness"))
    plain = tmp_path / "plain.safetensors"
    write_lora(plain, read_lora(car)[0], {})
    for source, lora, message in (
        (bare, car, "has no classifier"),
        (demo_folder, unknown, 'does not name "sadness"'),
        (demo_folder, plain, "does not say which concept"),
        (demo_folder, tmp_path / "gone.safetensors", "is missing"),
    ):
        code, err = run_main(capsys, "evaluate", "--source", str(source), "--lora", str(lora))
        assert code == 1 and err.startswith("error: ") and message in err and err.strip().count("\n") == 0
        source = FluxSource("diffusers", folder=str(source))
        request = ErasureRequest(source, Concept("car"), ErasureConfig(), "car", str(tmp_path), "cpu")
        args = cli.parser().parse_args(["resume", "--out", str(tmp_path)])
        shares = cli.measure_trained(request, lora, args)
        assert shares == {"acc_e": None, "acc_g": None, "acc_ir": None, "base": None}
        assert message in capsys.readouterr().err


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
