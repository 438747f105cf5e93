"""`endurance`: a long training of a random model is killed in the middle, resumed, and ends as if it had not been."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from scripts.environment import CACHE, ROOT, SetupError, say

from .page import conclude
from .rows import Rows, key_of, machine
from .train import MODELS, random_weights
from .workplace import behaviour

NAME = "erase-car"
WORDS = ("--no-synonyms", "--irrelevant", "dog", "--irrelevant", "apple", "--irrelevant", "bus")
# What a pair costs is not asked here: one sample of few tokens, and a small bank.
SETTINGS = {
    "batch_erase": 1,
    "batch_preserve": 1,
    "erase_prompts": 4,
    "preserve_prompts": 4,
    "sampling_steps": 4,
    "resolution": 64,
    "sample_every": 0,
}


def random_source(shape: str, device: Any) -> Path:
    """A folder in diffusers layout with a random transformer of one of MODELS' shapes, in bf16, that takes prompts from
    the demo model's text encoders; kept for the next run."""
    import torch
    from diffusers import FluxTransformer2DModel

    from training.models.source import demo_model_folder, read_json

    demo, folder = demo_model_folder(), CACHE / "bench" / "endurance" / shape / "model"
    if folder.is_dir():
        return folder
    making = folder.with_name("making")
    shutil.rmtree(making, ignore_errors=True)
    shutil.copytree(demo, making, ignore=shutil.ignore_patterns("transformer", "classifier"))
    widths = {
        name: read_json(demo / "transformer" / "config.json")[name]
        for name in ("joint_attention_dim", "pooled_projection_dim")
    }
    with torch.device("meta"):
        model = torch.nn.Module.to(FluxTransformer2DModel(**{**MODELS[shape], **widths}), torch.bfloat16)
    random_weights(model, device).to("cpu").save_pretrained(making / "transformer")
    making.rename(folder)
    return folder


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """`training.cli` in a process of its own, with the arithmetic of a job's worker."""
    from training.jobs.processes import ENVIRONMENT

    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "training.cli", *arguments, "--no-measure"]
    with log.open("ab") as output:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT}
        )


def finished(process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits for a training. Raises SetupError where it failed."""
    if process.wait():
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise SetupError(f"The training failed: {' '.join(last)}")


def killed_and_resumed(train: list[str], out: Path, half: int) -> int:
    """A training that is killed as soon as a checkpoint of step `half` or later is there, and resumed; → that step."""
    from training.checkpoint import latest_checkpoint

    log, checkpoints = out / "log.txt", out / f"{NAME}.training" / "checkpoints"
    process = start([*train, "--out", str(out)], log)
    while not any(int(path.stem[5:]) >= half for path in checkpoints.glob("step-*.safetensors")):
        if process.poll() is not None:
            finished(process, log)
            raise SetupError("The training ended before it was killed: use more --pairs.")
        time.sleep(0.05)
    process.kill()  # SIGKILL; Windows ends a process no less abruptly
    process.wait()
    kept = latest_checkpoint(checkpoints).step
    say(f"killed; the checkpoint of step {kept} is there")
    finished(start(["resume", "--out", str(out)], log), log)
    return kept


def end_of(out: Path) -> tuple[dict[str, Any], dict[str, float], int]:
    """(the LoRA's tensors, the last losses, the last step) of a finished training."""
    from safetensors.torch import load_file

    from training.checkpoint import latest_checkpoint

    last = latest_checkpoint(out / f"{NAME}.training" / "checkpoints")
    return load_file(out / f"{NAME}.safetensors"), last.facts["losses"], last.step


def taken_by_diffusers(lora: Path, geometry: dict[str, Any]) -> bool:
    """Whether diffusers puts every tensor of a LoRA file on a transformer of this geometry, on the meta device."""
    import torch
    from diffusers import FluxPipeline, FluxTransformer2DModel
    from peft.tuners.lora import LoraLayer
    from safetensors.torch import load_file

    with torch.device("meta"):
        model = FluxTransformer2DModel(**geometry)
    state = FluxPipeline.lora_state_dict(load_file(lora), return_alphas=True)
    state, alphas = state[0], state[1] if len(state) > 1 else None
    FluxPipeline.load_lora_into_transformer(state, alphas, model, low_cpu_mem_usage=True)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return len(layers) * 2 == sum(".lora_" in name for name in load_file(lora))


def taken_by_the_host(lora: Path, geometry: dict[str, Any], folder: Path) -> bool:
    """Whether the host's stock loader finds a place for every key of a LoRA file: its own mapping, on the meta device,
    in a process of its own."""
    from scripts.host import SHIM_FOLDER, get_host

    host, answer = get_host(), folder / "host.json"
    request = json.dumps({"lora": str(lora), "geometry": geometry, "answer": str(answer)})
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("stock_keys.py")), request],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SHIM_FOLDER), str(host)])},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SetupError(f"The host's loader failed: {done.stderr.strip()[-300:]}")
    return json.loads(answer.read_text(encoding="utf-8")) == {"unknown": []}


def endurance(args: argparse.Namespace) -> None:
    """A long training of a random model, killed by SIGKILL and resumed, against one left alone; its file's keys."""
    import torch

    from training.models.device import pick_device
    from training.models.source import read_json

    device, where = pick_device(args.device), machine()
    rows = Rows(args.out / f"{args.name or 'endurance'}.json", CACHE / "bench" / "locks")
    source = random_source(args.model, device)
    folder = source.parent / "work"
    shutil.rmtree(folder, ignore_errors=True)
    train = ["train", "--source", str(source), "--concept", "car", *WORDS, "--precision", args.precision]
    train += ["--device", args.device, "--steps", str(args.pairs)]
    for setting in [*(f"{name}={value}" for name, value in SETTINGS.items()), *args.set]:
        train += ["--set", setting]
    say(f"{args.pairs} pairs of {args.model} in {args.precision}, killed in the middle")
    began = time.monotonic()
    kept = killed_and_resumed(train, folder / "killed", args.pairs // 2)
    seconds = time.monotonic() - began
    lora, losses, last = end_of(folder / "killed")
    row: dict[str, Any] = {"killed_after": kept, "steps": last, "seconds": round(seconds, 1), "losses": losses}
    if device.type == "cpu":  # a GPU's sums come out in another order each time
        say("the same, left alone")
        log = folder / "alone" / "log.txt"
        finished(start([*train, "--out", str(folder / "alone")], log), log)
        other, expected, _ = end_of(folder / "alone")
        row["identical"] = (
            losses == expected
            and list(lora) == list(other)
            and all(torch.equal(lora[name], tensor) for name, tensor in other.items())
        )
    path, geometry = folder / "killed" / f"{NAME}.safetensors", read_json(source / "transformer" / "config.json")
    geometry = {name: geometry[name] for name in MODELS[args.model]}
    row |= {
        "finite": all(bool(torch.isfinite(tensor).all()) for tensor in lora.values()),
        "keys": len(lora),
        "taken_by_diffusers": taken_by_diffusers(path, geometry),
        "taken_by_the_host": taken_by_the_host(path, geometry, folder),
    }
    slot = {"model": args.model, "precision": args.precision, "device": where["gpu"] or device.type}
    slot |= {"pairs": args.pairs, "settings": args.set}
    rows.put(key_of(slot), slot, {"behaviour": behaviour(), **row})
    shutil.rmtree(folder)
    conclude(rows, "endurance")
