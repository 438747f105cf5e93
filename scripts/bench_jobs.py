"""Measures the job store at scale: `python scripts/bench_jobs.py` prints one JSON object, times in milliseconds.

A store of 1,000 jobs is written to a temporary folder: how long its list takes as a client gets it (for the first time
and again), one look of the scheduler, moving a job in the queue, and replaying 10,000 events of one job. With --page
also in a real ComfyUI with a real browser: the same answers over HTTP, and the time from the click on the sidebar tab
until its cards are there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.environment import SetupError, install_requirements, run_inside_venv

STATES = ("completed", "completed", "completed", "failed", "cancelled", "paused", "interrupted", "queued")


def fill(root: Path, loras: Path, jobs: int) -> None:
    """Writes jobs in all states, as their own code writes them; every completed one has a LoRA file."""
    from training.concepts import Concept
    from training.jobs import JobFolder, JobState
    from training.jobs.kinds import digest_of
    from training.models.source import demo_source
    from training.request import ErasureRequest
    from training.settings import ErasureConfig

    loras.mkdir()
    concept = Concept("car", irrelevant=("house", "tree", "apple"), preserve=("a photo of a house",) * 64)
    template = ErasureRequest(demo_source(), concept, ErasureConfig(), "name", str(loras), "cpu")
    root.mkdir()
    losses = {"esd": 0.01, "attn": 0.2, "lora": 0.003, "rsc": 1.5}
    for number in range(jobs):
        request = replace(template, name=f"erase-car-{number}", config=ErasureConfig(seed=number))
        digest, created = digest_of(request), 1_700_000_000.0 + number
        record = {"request": request.to_dict(), "digest": digest, "created": created, "total": 200}
        folder = JobFolder.create(root / f"20260101-000000-erase-car-{number}-{digest[:8]}", record)
        state = STATES[number % len(STATES)]
        folder.write_state(JobState(state, created, 200, 200, 0.5, losses, "train", "Something was said about it."))
        if state == "completed":
            (loras / f"erase-car-{number}.safetensors").touch()


def write_events(file: Path, count: int) -> None:
    """An event log as a training writes it."""
    from training.jobs.folder import append_line

    losses = {"esd": 0.0123456, "attn": 0.2345678, "lora": 0.0034567, "rsc": 1.5678901}
    append_line(file, {"n": 1, "time": 1.7e9, "type": "state", "state": "running", "message": ""})
    with file.open("a", encoding="utf-8") as log:
        for n in range(2, count + 1):
            event = {"n": n, "time": 1.7e9 + n, "type": "step", "step": n, "total": count, "losses": losses}
            log.write(json.dumps({**event, "seconds_per_step": 0.4321}, separators=(",", ":")) + "\n")


def timed(work: Callable[[], object], times: int = 20) -> dict[str, float]:
    """Median and maximum in milliseconds, and the processor's time, which other programs disturb less."""
    taken, busy = [], []
    for _ in range(times):
        began, worked = time.perf_counter(), time.process_time()
        work()
        taken.append(1000 * (time.perf_counter() - began))
        busy.append(1000 * (time.process_time() - worked))
    return {
        name: round(value, 1)
        for name, value in (("median", statistics.median(taken)), ("max", max(taken)), ("cpu", statistics.median(busy)))
    }


def measure(jobs: int, events: int, folder: Path) -> dict[str, object]:
    """All the times."""
    from training.jobs import JobQueue, JobRepository, Scheduler

    fill(folder / "jobs", folder / "loras", jobs)
    store = JobRepository(folder / "jobs")
    JobQueue(store).configure(slots=0)  # nothing starts

    def listed() -> str:
        found, problems = store.scan()
        queue = [job.id for job in JobQueue(store).jobs(found)]
        told = [job.to_dict(samples=False) for job in found]
        return json.dumps({"jobs": told, "queue": queue, "problems": problems})

    first = timed(listed, 1)
    found = store.list()
    assert len(found) == jobs
    scheduler = Scheduler(store)
    waiting = JobQueue(store).jobs()
    one = found[0].folder
    write_events(one.events_file, events)
    assert len(one.events()) == events
    rows = {
        "list_first": first,
        "list": timed(listed),
        "scheduler_tick": timed(scheduler.tick),
        "move": timed(lambda: JobQueue(store).move(waiting[-1].id, "up")),
        "events_all": timed(lambda: json.dumps(one.events())),
        "events_last_100": timed(lambda: json.dumps(one.events(since=events - 100))),
        "clone": timed(lambda: store.clone(found[0].id), 3),
    }
    scheduler.close()
    return {"jobs": jobs, "events": events, "milliseconds": rows}


def measure_page(jobs: int, events: int, folder: Path, times: int = 5) -> dict[str, object]:
    """The same through a server and a page: answers in milliseconds, the tab's opening in seconds, each time."""
    from playwright.sync_api import sync_playwright

    from scripts.host import Host, get_host
    from training.jobs import JobQueue, JobRepository

    root = folder / "comfyui" / "user" / "__erase_anything" / "jobs"
    root.parent.mkdir(parents=True)
    fill(root, folder / "loras", jobs)
    store = JobRepository(root)
    JobQueue(store).configure(slots=0)  # nothing starts
    one = store.list()[0]
    write_events(one.folder.events_file, events)
    route, opened = "/erase_anything/v1/jobs", []
    with Host(get_host(), folder / "comfyui") as host, sync_playwright() as playwright:
        host.post("/settings", {"Comfy.TutorialCompleted": True})
        assert len(host.get(route)["jobs"]) == jobs
        rows = {
            "list": timed(lambda: host.request("GET", route)),
            "events_all": timed(lambda: host.request("GET", f"{route}/{one.id}/events")),
        }
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(times):
            page = browser.new_page()
            page.goto(host.url)
            page.wait_for_function("window.app?.vueAppReady && window.app.graph")
            page.wait_for_timeout(3000)  # as a user who sees the page before the click
            began = time.perf_counter()
            page.locator(".erase-anything-tab-button").click()
            page.locator(".ea-card").nth(20).wait_for()
            opened.append(round(time.perf_counter() - began, 2))
            page.close()
        browser.close()
    return {"milliseconds": rows, "tab_seconds": opened}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--page", action="store_true", help="measure a real ComfyUI and its page too (needs Chromium)")
    args = parser.parse_args()
    try:
        install_requirements(tests=True)
        run_inside_venv()
        with tempfile.TemporaryDirectory() as folder:
            result = measure(args.jobs, args.events, Path(folder))
            if args.page:
                result["page"] = measure_page(args.jobs, args.events, Path(folder) / "page")
            print(json.dumps(result))
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
