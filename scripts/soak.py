"""Kills what this pack runs without warning, as kill -9 does it, and checks that nothing is lost: `soak.py jobs`.

jobs        one small training on the demo model three times: left alone; with the scheduler's process (the server's
            part) killed again and again, always to find the same worker again; with the worker killed and resumed
server      a real ComfyUI killed in the middle of a training: it must find the same worker again, and a browser must
            show the right step within two seconds (needs Chromium)
evaluation  a small `evaluate` with white-box attacks, killed at random moments of its whole course
long        1,000 pairs of a random model at Flux.1-dev's size, killed in the middle; a row of the
            benchmarks' endurance.json

What was killed must end to the last bit as what was left alone. Prints one JSON object; the exit status is 0 when
everything held.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.environment import CACHE, ROOT, SetupError, install_requirements, run_inside_venv, say

Report = dict[str, Any]

EVALUATION = (
    "--deletion --strengths 0,0.5,1 --images 3 --images-per-attack 1 --suite attacks --batch-size 2 --attacks all "
    "--attack-set images=2 --attack-set judged=1 --attack-set targets=1 --attack-set tries=1 --attack-set steps=4 "
    "--attack-set candidates=3"
)
EVALUATED_STEPS = 4  # of the LoRA that is evaluated: it has only begun to learn, so that attacks on it find something
LONG_NAME = "erase-car"
# What a pair costs is not asked in a long training: one sample of few tokens, and a small bank.
LONG = (
    "--concept car --no-synonyms --irrelevant dog --irrelevant apple --irrelevant bus --set batch_erase=1 "
    "--set batch_preserve=1 --set erase_prompts=4 --set preserve_prompts=4 --set sampling_steps=4 --set resolution=64 "
    "--set sample_every=0"
)


def start_cli(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """`training.cli` in a process of its own, with the arithmetic of a job's worker."""
    from training.jobs.processes import ENVIRONMENT

    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "training.cli", *arguments],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT},
        )


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits for the end of a command. Raises SetupError with what it said where it failed."""
    if process.wait():
        raise SetupError(f"It failed: {log.read_text(encoding='utf-8', errors='replace').strip()[-2000:]}")


def request_into(folder: Path, steps: int):
    """A small training; only its output folder differs."""
    from training.concepts import Concept
    from training.models.source import demo_source
    from training.request import ErasureRequest
    from training.settings import ErasureConfig

    preserve = ("a photo of a house", "a photo of a tree")
    concept = Concept("car", irrelevant=("house", "tree", "apple"), preserve=preserve)
    config = ErasureConfig(steps=steps, rank=4, erase_prompts=2, batch_preserve=2, checkpoint_every=4, sample_every=0)
    return ErasureRequest(demo_source("fp32"), concept, config, "erase-car", str(folder), "cpu")


# --- jobs ------------------------------------------------------------------------------------------------------------


def serve(root: Path) -> None:
    """The server's part of the jobs below `root`, until it is killed."""
    from training.jobs import JobRepository, Scheduler

    Scheduler(JobRepository(root)).start()
    while True:
        time.sleep(1)


class Server:
    """A process that runs serve()."""

    def __init__(self, root: Path):
        self.root = root
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, __file__, "serve", str(self.root)])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def last_step(job) -> int:
    """The last step that a job has reported."""
    return max((event["step"] for event in job.folder.events() if event["type"] == "step"), default=0)


def wait_for(repository, job, state: str | None = None, step: int | None = None):
    """The job as soon as it is in a state, has reported a step, or has ended."""
    while True:
        now = repository.get(job.id)
        there = now.state.state == state or (step is not None and last_step(now) >= step)
        if there or now.state.state in ("completed", "failed"):
            return now
        time.sleep(0.01)


def kill_scheduler(server: Server, repository, job, moments: list[int]) -> Report:
    """Kills the scheduler whenever the job has come to a step of `moments`, and starts another one."""
    workers = set()
    for step in moments:
        workers.add(wait_for(repository, job, step=step).state.pid)
        server.kill()
        time.sleep(random.random())
        server.start()
    done = wait_for(repository, job, "completed")
    return {"kills": len(moments), "attempts": done.state.attempt, "workers": len(workers), "lora": done.product}


def kill_worker(repository, job, moments: list[int]) -> Report:
    """Kills the worker whenever it has reported a step of `moments`, and resumes the job."""
    import psutil

    for step in moments:
        psutil.Process(wait_for(repository, job, step=step).state.pid).kill()
        wait_for(repository, job, "interrupted")
        job = repository.resume(job.id)
    done = wait_for(repository, job, "completed")
    return {"kills": len(moments), "attempts": done.state.attempt, "lora": done.product}


def soak_jobs(times: int, steps: int, seed: int, folder: Path) -> Report:
    """The three trainings one after another."""
    from training.jobs import JobRepository

    draw = random.Random(seed)
    repository = JobRepository(folder / "jobs")
    server = Server(repository.root)
    try:
        alone = wait_for(repository, repository.submit(request_into(folder / "alone", steps)), "completed")
        if alone.state.state != "completed":
            raise SetupError(alone.state.message)
        rows: Report = {}
        for name, kill in (("scheduler", partial(kill_scheduler, server)), ("worker", kill_worker)):
            moments = sorted(draw.sample(range(1, steps - 1), times))
            job = repository.submit(request_into(folder / name, steps))
            began = time.monotonic()
            row = kill(repository, job, moments)
            lora = row.pop("lora")
            same = lora.is_file() and lora.read_bytes() == alone.product.read_bytes()
            events = repository.get(job.id).folder.events()
            whole = [event["n"] for event in events] == list(range(1, len(events) + 1))
            reported = {event["step"] for event in events if event["type"] == "step"}
            seconds = round(time.monotonic() - began, 1)
            facts = {"identical": same, "events_whole": whole, "every_step": reported == set(range(1, steps + 1))}
            rows[name] = {**row, "at_steps": moments, **facts, "seconds": seconds}
        held = all(rows[name][fact] for name in rows for fact in ("identical", "events_whole", "every_step"))
        return {"seed": seed, "steps": steps, **rows, "held": held and rows["scheduler"]["workers"] == 1}
    finally:
        server.kill()


# --- server ----------------------------------------------------------------------------------------------------------


def soak_server(times: int, seed: int, folder: Path) -> Report:
    """Kills a real ComfyUI in the middle of a training, starts it again, and times when the page shows the right step.

    shown_after: seconds from the click on the tab until the step on it is the one on disk, one per kill.
    """
    from playwright.sync_api import sync_playwright

    from scripts.host import Host, get_host
    from training.jobs import JobRepository

    jobs, draw = "/erase_anything/v1/jobs", random.Random(seed)
    concept = {"phrase": "car", "synonyms": [], "irrelevant": ["house", "tree", "apple"]}
    small = {"erase_prompts": 2, "preserve_prompts": 2, "batch_erase": 1, "batch_preserve": 1, "sample_every": 0}
    with Host(get_host(), folder / "comfyui") as host, sync_playwright() as playwright:
        host.post("/settings", {"Comfy.TutorialCompleted": True})
        job = host.post(jobs, {"concept": concept, "config": {"steps": 100_000, **small}, "name": "killed"})["id"]
        repository = JobRepository(host.base / "user" / "__erase_anything" / "jobs")
        while last_step(repository.get(job)) < 2:
            time.sleep(0.1)
        workers, seconds = {repository.get(job).state.pid}, []
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(times):
            time.sleep(3 * draw.random())
            host.stop(kill=True)
            host.start()
            page = browser.new_page()
            page.set_default_timeout(180_000)
            page.goto(host.url)
            page.wait_for_function("window.app?.vueAppReady && window.app.graph")
            tab = page.locator(".erase-anything-tab-button")
            tab.wait_for()
            began = time.monotonic()
            tab.click()
            steps = page.locator(f'.ea-card[data-job="{job}"] .ea-steps')
            while True:
                written = last_step(repository.get(job))
                shown = "".join(filter(str.isdigit, steps.inner_text().split("of")[0]))
                if shown and int(shown) >= written:
                    break
                time.sleep(0.02)
            seconds.append(round(time.monotonic() - began, 2))
            workers.add(repository.get(job).state.pid)
            page.close()
        attempts = host.get(f"{jobs}/{job}")["attempt"]
        host.post(f"{jobs}/{job}/cancel", {})
        while host.get(f"{jobs}/{job}")["state"] != "cancelled":
            time.sleep(0.1)
        browser.close()
    found = {"kills": times, "attempts": attempts, "workers": len(workers), "shown_after": seconds}
    return {"seed": seed, **found, "held": len(workers) == 1 and max(seconds, default=0) <= 2}


# --- evaluation ------------------------------------------------------------------------------------------------------


def evaluation_files(out: Path) -> list[Path]:
    """The files of an evaluation that is under way, in the order in which they were written."""
    files = [path for path in out.rglob("*") if path.suffix in (".json", ".png") and path.name[0] != "."]
    return sorted(files, key=lambda path: path.stat().st_mtime_ns)


def evaluation_in(out: Path) -> tuple[str, dict[str, bytes]]:
    """evaluation.json without "run", and the pictures."""
    found = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    del found["run"]
    pictures = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.png"))}
    return json.dumps(found, ensure_ascii=False), pictures


def soak_evaluation(times: int, seed: int, folder: Path) -> Report:
    """The evaluation left alone, and killed `times` times."""
    from training.models.source import demo_source
    from training.trainer import run

    draw, log = random.Random(seed), folder / "log.txt"
    lora = run(request_into(folder / "lora", EVALUATED_STEPS), folder / "lora" / "work", lambda event: None)["lora"]
    command = ["evaluate", "--source", demo_source("fp32").folder, "--precision", "fp32", "--device", "cpu"]
    command += ["--lora", str(lora), *shlex.split(EVALUATION), "--out"]
    began = time.monotonic()
    finish(start_cli([*command, str(folder / "alone")], log), log)
    alone = round(time.monotonic() - began, 1)
    moments = [path.stat().st_mtime for path in evaluation_files(folder / "alone")]
    out, kills, began = folder / "killed", 0, time.monotonic()
    at = sorted(draw.sample(range(1, len(moments) - 1), times))
    for files in at:  # somewhere between the writing of this file and of the next one
        process = start_cli([*command, str(out)], log)
        while len(evaluation_files(out)) < files and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.random() * (moments[files] - moments[files - 1]))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
    finish(start_cli([*command, str(out)], log), log)
    (first, before), (second, after) = (evaluation_in(folder / name) for name in ("alone", "killed"))
    return {
        "seed": seed,
        "kills": kills,
        "at_files": at,
        "files": len(moments),
        "identical": first == second,
        "pictures": len(before),
        "same_pictures": before == after,
        "seconds_alone": alone,
        "seconds_killed": round(time.monotonic() - began, 1),
        "held": first == second and before == after and kills == times,
    }


# --- long ------------------------------------------------------------------------------------------------------------


def random_source(shape: str, device: Any) -> Path:
    """A folder in diffusers layout with a random transformer of a shape, in bf16, that takes prompts from the demo
    model's text encoders; kept for the next run."""
    import torch
    from diffusers import FluxTransformer2DModel

    from benchmarks.random_flux import MODELS, random_weights
    from training.models.source import demo_model_folder, read_json

    demo, folder = demo_model_folder(), CACHE / "bench" / "endurance" / shape / "model"
    if folder.is_dir():
        return folder
    making = folder.with_name("making")
    shutil.rmtree(making, ignore_errors=True)
    shutil.copytree(demo, making, ignore=shutil.ignore_patterns("transformer", "classifier"))
    demo_config = read_json(demo / "transformer" / "config.json")
    widths = {name: demo_config[name] for name in ("joint_attention_dim", "pooled_projection_dim")}
    with torch.device("meta"):
        model = torch.nn.Module.to(FluxTransformer2DModel(**{**MODELS[shape], **widths}), torch.bfloat16)
    random_weights(model, device).to("cpu").save_pretrained(making / "transformer")
    making.rename(folder)
    return folder


def kill_and_resume(train: list[str], out: Path, half: int) -> int:
    """A training that is killed as soon as a checkpoint of step `half` or later is there, and resumed; → that step."""
    from training.checkpoint import latest_checkpoint

    log, checkpoints = out / "log.txt", out / f"{LONG_NAME}.training" / "checkpoints"
    process = start_cli([*train, "--out", str(out)], log)
    while not any(int(path.stem[5:]) >= half for path in checkpoints.glob("step-*.safetensors")):
        if process.poll() is not None:
            finish(process, log)
            raise SetupError("The training ended before it was killed: use more --pairs.")
        time.sleep(0.05)
    process.kill()
    process.wait()
    step = latest_checkpoint(checkpoints).step
    say(f"killed; the checkpoint of step {step} is there")
    finish(start_cli(["resume", "--out", str(out), "--no-measure"], log), log)
    return step


def end_of(out: Path) -> tuple[dict[str, Any], dict[str, float], int]:
    """(the LoRA's tensors, the last losses, the last step) of a finished training."""
    from safetensors.torch import load_file

    from training.checkpoint import latest_checkpoint

    last = latest_checkpoint(out / f"{LONG_NAME}.training" / "checkpoints")
    return load_file(out / f"{LONG_NAME}.safetensors"), last.facts["losses"], last.step


def soak_long(args: argparse.Namespace) -> Report:
    """A long training of a random model, killed and resumed, against one left alone; its file's keys."""
    import torch

    from benchmarks.page import conclude
    from benchmarks.random_flux import MODELS
    from benchmarks.rows import Rows, key_of, machine
    from scripts.lora_keys import fits_diffusers, fits_host
    from training import BEHAVIOUR
    from training.models.device import pick_device
    from training.models.source import read_json

    device, where = pick_device(args.device), machine()
    source = random_source(args.model, device)
    folder = source.parent / "work"
    shutil.rmtree(folder, ignore_errors=True)
    train = ["train", "--source", str(source), *shlex.split(LONG), "--precision", args.precision, "--no-measure"]
    train += ["--device", args.device, "--steps", str(args.pairs)]
    train += [part for setting in args.set for part in ("--set", setting)]
    say(f"{args.pairs} pairs of {args.model} in {args.precision}, killed in the middle")
    began = time.monotonic()
    killed_after = kill_and_resume(train, folder / "killed", args.pairs // 2)
    seconds = time.monotonic() - began
    lora, losses, last = end_of(folder / "killed")
    row: Report = {"killed_after": killed_after, "steps": last, "seconds": round(seconds, 1), "losses": losses}
    if device.type == "cpu":  # a GPU's sums come out in another order each time
        say("the same, left alone")
        log = folder / "alone" / "log.txt"
        finish(start_cli([*train, "--out", str(folder / "alone")], log), log)
        other, expected, _ = end_of(folder / "alone")
        same = list(lora) == list(other) and all(torch.equal(lora[name], tensor) for name, tensor in other.items())
        row["identical"] = losses == expected and same
    path, geometry = folder / "killed" / f"{LONG_NAME}.safetensors", read_json(source / "transformer" / "config.json")
    geometry = {name: geometry[name] for name in MODELS[args.model]}
    row |= {
        "finite": all(bool(torch.isfinite(tensor).all()) for tensor in lora.values()),
        "keys": len(lora),
        "taken_by_diffusers": fits_diffusers(path, geometry),
        "taken_by_the_host": fits_host(path, geometry, folder),
    }
    slot = {"model": args.model, "precision": args.precision, "device": where["gpu"] or device.type}
    slot |= {"pairs": args.pairs, "settings": args.set}
    rows = Rows(args.out / "endurance.json", CACHE / "bench" / "locks", "scripts/soak.py")
    rows.put(key_of(slot), slot, {"behaviour": BEHAVIOUR, **row})
    conclude(rows, "endurance")
    shutil.rmtree(folder)
    facts = ("identical", "finite", "taken_by_diffusers", "taken_by_the_host")
    return {**slot, **row, "held": last == args.pairs and all(row.get(fact, True) for fact in facts)}


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True, metavar="{jobs,server,evaluation,long}")
    for name in ("jobs", "server", "evaluation"):
        one = commands.add_parser(name)
        one.add_argument("--times", type=int, default=10, help="how often each is killed")
        one.add_argument("--seed", type=int, default=None, help="of the moments (default: another one each time)")
        if name == "jobs":
            one.add_argument("--steps", type=int, default=24, help="of the training; more than the kills")
    long = commands.add_parser("long")
    long.add_argument("--device", default="auto")
    long.add_argument("--model", default="flux-dev-random", help="or flux-tiny-random: a shape; weights are random")
    long.add_argument("--pairs", type=int, default=1000, help="of erasing and preserving steps")
    long.add_argument("--precision", default="auto")
    long.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a training setting")
    long.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of endurance.json")
    commands.add_parser("serve").add_argument("root", type=Path)  # a process of `jobs`
    return top


def main() -> int:
    args = parser().parse_args()
    if args.command == "serve":
        serve(args.root)
    try:
        install_requirements(tests=True)
        run_inside_venv()
        if args.command == "long":
            result = soak_long(args)
        else:
            seed = random.randrange(10**6) if args.seed is None else args.seed
            soaks: dict[str, Callable[[Path], Report]] = {
                "jobs": lambda folder: soak_jobs(args.times, args.steps, seed, folder),
                "server": partial(soak_server, args.times, seed),
                "evaluation": partial(soak_evaluation, args.times, seed),
            }
            with tempfile.TemporaryDirectory() as folder:
                result = soaks[args.command](Path(folder))
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0 if result["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
