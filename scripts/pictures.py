"""Remakes the pictures of the README and of the example workflows from the real thing: `python scripts/pictures.py`.

Starts a ComfyUI of its own, opens each example workflow in a real browser (Chromium), presses Run, waits for its end
(the first one trains with its defaults: minutes) and photographs the graph. Run it after a change that shows; `1 4`
takes the pictures of these workflows alone, `states` those of a job's card in every state.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.environment import (
    ROOT,
    WORDNET_PACKAGES,
    SetupError,
    install_debian,
    install_requirements,
    install_wordnet,
    run_inside_venv,
    say,
)
from scripts.host import PACK_NAME, RUN_BUTTON, Host, HostError, get_host

if TYPE_CHECKING:
    from playwright.sync_api import Page

WORKFLOWS = ROOT / "example_workflows"
IMAGES = ROOT / "docs" / "images"
SHEET = ROOT / "web" / "docs" / "EraseAnything_TokenHeatmaps" / "sheet.jpg"
MARGIN = 24  # pixels around what is photographed
TRAINING_LIMIT = 3600  # seconds
SIDEBAR_WIDTH = """() => Object.assign(document.querySelector(".side-bar-panel").style,
    { flexBasis: "380px", minWidth: "380px", maxWidth: "380px" })"""
NO_CHROME = ".p-dialog-mask, .p-toast, .side-tool-bar-container { visibility: hidden !important }"

# Brings the given nodes (or all) into the middle of the page, as large as they fit, and says where they lie on it.
FRAME = """([types, margin]) => {
    const nodes = app.graph.nodes.filter((node) => !types.length || types.includes(node.type));
    const left = Math.min(...nodes.map((n) => n.pos[0]));
    const right = Math.max(...nodes.map((n) => n.pos[0] + n.size[0]));
    const top = Math.min(...nodes.map((n) => n.pos[1])) - 36; // the title bar lies above a node's position
    const bottom = Math.max(...nodes.map((n) => n.pos[1] + n.size[1]));
    const view = app.canvas.canvas.getBoundingClientRect();
    const room = [view.width - 240, view.height - 200];
    const ds = app.canvas.ds;
    ds.scale = Math.min(room[0] / (right - left), room[1] / (bottom - top), 1.4);
    ds.offset[0] = view.width / 2 / ds.scale - (left + right) / 2;
    ds.offset[1] = view.height / 2 / ds.scale - (top + bottom) / 2;
    app.canvas.setDirty(true, true);
    return {
        x: view.x + (left + ds.offset[0]) * ds.scale - margin,
        y: view.y + (top + ds.offset[1]) * ds.scale - margin,
        width: (right - left) * ds.scale + 2 * margin,
        height: (bottom - top) * ds.scale + 2 * margin,
    };
}"""


def photograph(page: Page, target: Path, width: int, types: list[str] | None = None) -> None:
    """The nodes of these types (default: all) as a JPEG of at most this width."""
    from PIL import Image

    page.evaluate(FRAME, [types or [], MARGIN])
    page.wait_for_timeout(1500)  # panels and previews are laid out again
    box = page.evaluate(FRAME, [types or [], MARGIN])
    page.wait_for_timeout(1500)
    picture = Image.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB")
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.save(target, quality=85, optimize=True)
    say(f"{target.relative_to(ROOT)} {picture.width}x{picture.height}")


def photograph_sidebar(page: Page, target: Path) -> None:
    """The tab "Erasure" with its cards, which is opened for it and closed again."""
    page.keyboard.press("e")
    sidebar = page.locator(".ea-sidebar")
    sidebar.locator(".ea-card").first.wait_for()
    page.evaluate(SIDEBAR_WIDTH)
    page.wait_for_timeout(2500)  # curves and samples arrive
    target.parent.mkdir(parents=True, exist_ok=True)
    sidebar.screenshot(path=target, type="jpeg", quality=88)
    page.keyboard.press("e")
    say(f"{target.relative_to(ROOT)}")


def photograph_states(page: Page, host: Host) -> None:
    """A training's card in every state that it can be in, each brought about as it happens to a user."""
    jobs = "/erase_anything/v1/jobs"
    small = {"erase_prompts": 4, "preserve_prompts": 4, "sample_every": 20, "sample_count": 1, "checkpoint_every": 5}

    def submit(phrase: str, steps: int) -> str:
        name, concept = f"state-{phrase}", {"phrase": phrase}
        return host.post(jobs, {"concept": concept, "config": {"steps": steps, **small}, "name": name})["id"]

    def card(job: str, state: str, step: int = 0, shown: bool = True) -> None:
        """Waits until a job is in a state and has come to a step, and photographs its card."""
        deadline = time.monotonic() + TRAINING_LIMIT
        while (now := host.get(f"{jobs}/{job}"))["state"] != state or now["step"] < step:
            if time.monotonic() > deadline:
                raise HostError(f"{job} is {now['state']} at step {now['step']}, not {state} at {step}")
            time.sleep(0.2)
        if shown:
            found = page.locator(f'.ea-card[data-job="{job}"][data-state="{state}"]')
            found.scroll_into_view_if_needed()
            page.wait_for_timeout(1500)
            found.screenshot(path=IMAGES / f"state_{state}.jpg", type="jpeg", quality=85)
            say(f"docs/images/state_{state}.jpg")

    def do(job: str, action: str) -> None:
        host.post(f"{jobs}/{job}/{action}", {})

    def folder(job: str) -> Path:
        return host.base / "user" / "__erase_anything" / "jobs" / job

    page.keyboard.press("e")
    page.locator(".ea-sidebar .ea-card").first.wait_for()
    page.evaluate(SIDEBAR_WIDTH)
    first, second = submit("umbrella", 200), submit("tree", 20)
    card(first, "running", 45)
    card(second, "queued")
    do(first, "pause")
    card(first, "paused")
    card(second, "completed")
    do(first, "resume")
    card(first, "running", 60, shown=False)
    os.kill(json.loads((folder(first) / "state.json").read_text(encoding="utf-8"))["pid"], signal.SIGKILL)
    card(first, "interrupted")
    do(first, "resume")
    card(first, "running", 62, shown=False)
    do(first, "cancel")
    card(first, "cancelled")
    for checkpoint in (folder(first) / "checkpoints").iterdir():  # as a disk that dies leaves it
        os.truncate(checkpoint, 1000)
    do(first, "resume")
    card(first, "failed")
    page.keyboard.press("e")


def run_workflow(page: Page, host: Host, name: str, seen_training: Path | None) -> dict[str, Any]:
    """Opens an example workflow, runs it to its end; → its history. seen_training: where to put a picture of the Train
    node midway."""
    page.goto(f"{host.url}/?template={name}&source={PACK_NAME}")
    page.wait_for_function("window.app?.vueAppReady && window.app.graph")
    page.wait_for_function("!location.search.includes('template') && app.graph.nodes.length > 0")
    page.add_style_tag(content=NO_CHROME)
    page.wait_for_timeout(1500)
    before = set(host.get("/history"))
    page.locator(RUN_BUTTON).first.click()
    deadline = time.monotonic() + TRAINING_LIMIT
    while not (new := set(host.get("/history")) - before):
        if time.monotonic() > deadline:
            raise HostError(f"{name} did not end within {TRAINING_LIMIT} s")
        jobs = host.get("/erase_anything/v1/jobs")["jobs"]
        if seen_training and jobs and jobs[0]["state"] == "running" and jobs[0]["step"] > 0.6 * jobs[0]["total"]:
            photograph(page, seen_training, 620, ["EraseAnything_Train"])
            photograph_sidebar(page, IMAGES / "sidebar_training.jpg")
            seen_training = None
        time.sleep(1)
    done = host.wait(new.pop())
    page.wait_for_timeout(3000)  # the previews arrive
    return done


def save(picture: Path, target: Path) -> None:
    """A picture that the host has made, as a JPEG."""
    from PIL import Image

    Image.open(picture).convert("RGB").save(target, quality=88, optimize=True)
    say(f"{target.relative_to(ROOT)}")


def take(host: Host, wanted: list[str]) -> None:
    """The pictures of the workflows with these numbers (none: all) and, if wanted, of the states, from one server."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium") or shutil.which("google-chrome")
    host.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": False})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 2200, "height": 1300})
        page.set_default_timeout(300_000)
        for path in sorted(WORKFLOWS.glob("*.json")):
            number = path.stem.partition("_")[0]
            if wanted and number not in wanted:
                continue
            say(f"running {path.stem}")
            first = number == "1"
            done = run_workflow(page, host, path.stem, IMAGES / "training.jpg" if first else None)
            photograph(page, path.with_suffix(".jpg"), 1000)
            if first:
                photograph(page, IMAGES / "erase_and_compare.jpg", 1400)
                photograph_sidebar(page, IMAGES / "sidebar_done.jpg")
                compared = (host.base / "output" / "erase_anything").glob("before_after*.png")
                save(max(compared, key=lambda p: p.stat().st_mtime), IMAGES / "before_after.jpg")
            if number == "4":
                (sheet,) = [image for output in done["outputs"].values() for image in output.get("images", ())][-1:]
                save(host.base / sheet["type"] / sheet["subfolder"] / sheet["filename"], SHEET)
        if not wanted or "states" in wanted:
            photograph_states(page, host)
        browser.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wanted", nargs="*", help="numbers of workflows, or states; all where there is none")
    parser.add_argument("--comfyui", metavar="PATH", help="your own ComfyUI instead")
    arguments = parser.parse_args()
    try:
        install_requirements(tests=True)
        run_inside_venv()
        install_debian(["chromium", *WORDNET_PACKAGES])
        install_wordnet()
        with tempfile.TemporaryDirectory() as base, Host(get_host(arguments.comfyui), Path(base)) as host:
            take(host, arguments.wanted)
    except (SetupError, HostError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
