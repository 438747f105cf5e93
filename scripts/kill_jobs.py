"""Kills trainings without warning and checks that nothing is lost: `python scripts/kill_jobs.py --times 10`.

Trains one small request on the demo model three times: left alone; with the process of the scheduler (the server's
part) killed again and again, always to find the same worker again; with the worker killed again and again, and resumed.
All three LoRAs must be the same to the last bit. Prints one JSON object; the exit status is 0 when everything held.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.environment import SetupError, install_requirements, run_inside_venv


def serve(root: Path) -> None:
    """The server's part of the jobs below `root`, until it is killed."""
    from training.jobs import JobStore, Scheduler

    Scheduler(JobStore(root)).start()
    while True:
        time.sleep(1)


class Server:
    """A process that runs serve()."""

    def __init__(self, root: Path):
        self.root = root
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, __file__, "--serve", str(self.root)])

    def kill(self) -> None:
        """As kill -9 does it."""
        self.process.kill()
        self.process.wait()


def request_into(folder: Path, steps: int):
    """The training; only its output folder differs."""
    from training.concepts import Concept
    from training.config import ErasureConfig, ErasureRequest
    from training.flux.source import demo_source

    preserve = ("a photo of a house", "a photo of a tree")
    concept = Concept("car", irrelevant=("house", "tree", "apple"), preserve=preserve)
    config = ErasureConfig(steps=steps, rank=4, erase_prompts=2, batch_preserve=2, checkpoint_every=4, sample_every=0)
    return ErasureRequest(demo_source("fp32"), concept, config, "erase-car", str(folder), "cpu")


def wait_for(store, job, state: str | None = None, step: int | None = None):
    """The job as soon as it is in a state, has told of a step, or has ended."""
    while True:
        now = store.get(job.id)
        told = max((event["step"] for event in now.folder.events() if event["type"] == "step"), default=0)
        if now.state.state == state or (step is not None and told >= step):
            return now
        if now.state.state in ("completed", "failed"):
            return now
        time.sleep(0.01)


def kill_scheduler(server: Server, store, job, moments: list[int]) -> dict[str, object]:
    """Kills the scheduler whenever the job has come to a step of `moments`, and starts another one."""
    workers = set()
    for step in moments:
        workers.add(wait_for(store, job, step=step).state.pid)
        server.kill()
        time.sleep(random.random())
        server.start()
    done = wait_for(store, job, "completed")
    return {"kills": len(moments), "attempts": done.state.attempt, "workers": len(workers), "lora": done.lora}


def kill_worker(store, job, moments: list[int]) -> dict[str, object]:
    """Kills the worker whenever it has told of a step of `moments`, and resumes the job."""
    import psutil

    for step in moments:
        psutil.Process(wait_for(store, job, step=step).state.pid).kill()
        wait_for(store, job, "interrupted")
        job = store.resume(job.id)
    done = wait_for(store, job, "completed")
    return {"kills": len(moments), "attempts": done.state.attempt, "lora": done.lora}


def measure(times: int, steps: int, seed: int, folder: Path) -> dict[str, object]:
    """The three trainings one after another."""
    from training.jobs import JobStore

    draw = random.Random(seed)
    store = JobStore(folder / "jobs")
    server = Server(store.root)
    try:
        alone = wait_for(store, store.submit(request_into(folder / "alone", steps)), "completed")
        if alone.state.state != "completed":
            raise SetupError(alone.state.message)
        rows = {}
        for name in ("scheduler", "worker"):
            moments = sorted(draw.sample(range(1, steps - 1), times))
            job = store.submit(request_into(folder / name, steps))
            began = time.monotonic()
            kill = {"scheduler": partial(kill_scheduler, server), "worker": kill_worker}[name]
            row = kill(store, job, moments)
            lora = row.pop("lora")
            same = lora.is_file() and lora.read_bytes() == alone.lora.read_bytes()
            events = [event["n"] for event in store.get(job.id).folder.events()]
            whole = events == list(range(1, len(events) + 1))
            seconds = round(time.monotonic() - began, 1)
            rows[name] = {**row, "at_steps": moments, "identical": same, "events_whole": whole, "seconds": seconds}
        return {"seed": seed, "steps": steps, **rows}
    finally:
        server.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="how often each is killed")
    parser.add_argument("--steps", type=int, default=24, help="of the training; more than the kills")
    parser.add_argument("--seed", type=int, default=None, help="of the moments (default: another one each time)")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
    try:
        install_requirements(tests=True)
        run_inside_venv()
        seed = random.randrange(10**6) if args.seed is None else args.seed
        with tempfile.TemporaryDirectory() as folder:
            result = measure(args.times, args.steps, seed, Path(folder))
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(result))
    held = all(result[name]["identical"] and result[name]["events_whole"] for name in ("scheduler", "worker"))
    return 0 if held and result["scheduler"]["workers"] == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
