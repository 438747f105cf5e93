"""Kills trainings without warning and checks that nothing is lost: `python scripts/kill_jobs.py --times 10`.

Trains one small request on the demo model three times: left alone; with the process of the scheduler (the server's
part) killed again and again, always to find the same worker again; with the worker killed again and again, and resumed.
All three LoRAs must be the same to the last bit. With --server a real ComfyUI is killed as often: each time it must
find the same worker again, and a browser must show the right step within two seconds. Prints one JSON object; the exit
status is 0 when everything held.
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
    from training.models.source import demo_source
    from training.request import ErasureRequest
    from training.settings import ErasureConfig

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
            events = store.get(job.id).folder.events()
            whole = [event["n"] for event in events] == list(range(1, len(events) + 1))
            told = {event["step"] for event in events if event["type"] == "step"}
            seconds = round(time.monotonic() - began, 1)
            facts = {"identical": same, "events_whole": whole, "every_step": told == set(range(1, steps + 1))}
            rows[name] = {**row, "at_steps": moments, **facts, "seconds": seconds}
        return {"seed": seed, "steps": steps, **rows}
    finally:
        server.kill()


def kill_server(times: int, seed: int, folder: Path) -> dict[str, object]:
    """Kills a real ComfyUI in the middle of a training, starts it again, and times when the page shows the right step.

    shown_after: seconds from the click on the tab until the step on it is the one on disk, one per kill.
    """
    import shutil

    from playwright.sync_api import sync_playwright

    from scripts.host import Host, get_host
    from training.jobs import JobStore

    jobs, draw = "/erase_anything/v1/jobs", random.Random(seed)
    concept = {"phrase": "car", "synonyms": [], "irrelevant": ["house", "tree", "apple"]}
    small = {"erase_prompts": 2, "preserve_prompts": 2, "batch_erase": 1, "batch_preserve": 1, "sample_every": 0}
    with Host(get_host(), folder / "comfyui") as host, sync_playwright() as playwright:
        host.post("/settings", {"Comfy.TutorialCompleted": True})
        job = host.post(jobs, {"concept": concept, "config": {"steps": 100_000, **small}, "name": "killed"})["id"]
        store = JobStore(host.base / "user" / "__erase_anything" / "jobs")

        def step_told() -> int:
            events = store.get(job).folder.events()
            return max((event["step"] for event in events if event["type"] == "step"), default=0)

        while step_told() < 2:
            time.sleep(0.1)
        workers, seconds = {store.get(job).state.pid}, []
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
                told, shown = step_told(), "".join(filter(str.isdigit, steps.inner_text().split("of")[0]))
                if shown and int(shown) >= told:
                    break
                time.sleep(0.02)
            seconds.append(round(time.monotonic() - began, 2))
            workers.add(store.get(job).state.pid)
            page.close()
        attempts = host.get(f"{jobs}/{job}")["attempt"]
        host.post(f"{jobs}/{job}/cancel", {})
        while host.get(f"{jobs}/{job}")["state"] != "cancelled":
            time.sleep(0.1)
        browser.close()
    return {"kills": times, "attempts": attempts, "workers": len(workers), "shown_after": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="how often each is killed")
    parser.add_argument("--steps", type=int, default=24, help="of the training; more than the kills")
    parser.add_argument("--seed", type=int, default=None, help="of the moments (default: another one each time)")
    parser.add_argument("--server", action="store_true", help="kill a real ComfyUI too (needs Chromium)")
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
            if args.server:
                result["server"] = kill_server(args.times, seed, Path(folder))
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(result))
    facts = ("identical", "events_whole", "every_step")
    held = all(result[name][fact] for name in ("scheduler", "worker") for fact in facts)
    held = held and all(result[name]["workers"] == 1 for name in ("scheduler", "server") if name in result)
    return 0 if held and max(result.get("server", {}).get("shown_after", [0])) <= 2 else 1


if __name__ == "__main__":
    sys.exit(main())
