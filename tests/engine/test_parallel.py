"""Processes that share batches train what one process does; they stop, resume and refuse as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scripts.environment import ROOT
from tests.engine.test_small_memory import CONCEPT, CONFIG
from training.checkpoint import latest_checkpoint
from training.errors import ConfigError
from training.jobs.processes import ENVIRONMENT
from training.models.source import FluxSource
from training.parallel import Group, placed
from training.request import ErasureRequest

SETTINGS = {
    "steps": 4,
    "rank": 2,
    "erase_prompts": 4,
    "batch_erase": 4,
    "batch_preserve": 2,
    "sampling_steps": 3,
    "t_min": 0,
    "resolution": 64,
    "checkpoint_every": 2,
    "sample_every": 4,
    "sample_count": 1,
    "random_strength": "true",
    "weight_rsc": 0.01,
}
LAUNCH = [
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
    "--main_process_port",
    "0",
]


def train(flux: FluxSource, out: Path, processes: int, **settings: object) -> subprocess.CompletedProcess[str]:
    """`training.cli train` in processes of its own, one thread each."""
    words = ["--no-synonyms", "--irrelevant", "dog", "--irrelevant", "apple", "--irrelevant", "bus"]
    arguments = ["train", "--source", flux.folder, "--concept", "car", *words, "--out", str(out), "--device", "cpu"]
    arguments += ["--precision", "fp32", "--no-measure"]
    for name, value in {**SETTINGS, **settings}.items():
        arguments += ["--set", f"{name}={value}"]
    launcher = LAUNCH if processes > 1 else []
    return subprocess.run(
        [sys.executable, *launcher, "-m", "training.cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"},
        timeout=600,
        check=False,
    )


def lora(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "erase-car.safetensors")


def test_two_processes_train_what_one_does(flux: FluxSource, tmp_path: Path):
    alone, both = train(flux, tmp_path / "one", 1), train(flux, tmp_path / "two", 2)
    assert alone.returncode == 0, alone.stderr
    assert both.returncode == 0, both.stderr
    assert len(both.stdout.strip().splitlines()) == 1  # the leader alone tells the result
    one, two = lora(tmp_path / "one"), lora(tmp_path / "two")
    assert list(one) == list(two)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-6)
    states = [latest_checkpoint(tmp_path / n / "erase-car.training" / "checkpoints") for n in ("one", "two")]
    assert states[0].step == states[1].step == 4 and torch.equal(states[0].generator, states[1].generator)
    assert states[1].facts["losses"] == pytest.approx(states[0].facts["losses"], rel=1e-4)
    # what was killed before its end ends as what was not
    checkpoints = tmp_path / "two" / "erase-car.training" / "checkpoints"
    (checkpoints / "step-00000004.safetensors").unlink()
    (tmp_path / "two" / "erase-car.safetensors").unlink()
    again = train(flux, tmp_path / "two", 2)
    assert again.returncode == 0 and "going on after step 2" in again.stderr, again.stderr
    resumed = lora(tmp_path / "two")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in two.items())


@pytest.mark.parametrize(("batch", "size", "whole"), [(1, 1, 1), (1, 2, 2), (4, 2, 4), (4, 3, 6)])
def test_a_batch_grows_until_all_processes_have_a_share(batch: int, size: int, whole: int):
    assert Group(0, size).whole(batch) == whole


def test_a_group_takes_a_device_each(flux: FluxSource, tmp_path: Path):
    request = ErasureRequest(flux, CONCEPT, CONFIG, "lora", str(tmp_path), "cuda:1")
    assert placed(request, Group()) is request
    with pytest.raises(ConfigError, match="leave --device on auto"):
        placed(request, Group(0, 2))


def test_shares_make_up_the_batch():
    batch = torch.arange(6)
    parts = [Group(rank, 3).share(batch) for rank in range(3)]
    assert {len(part) for part in parts} == {2} and torch.equal(torch.cat(parts).sort().values, batch)
