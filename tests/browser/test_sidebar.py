"""The sidebar tab: a card per job, as a user sees it: both renderers, mouse and keyboard, narrow, in Chinese."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, expect

from scripts.host import Host

from .conftest import JOBS, Frontend

# The sidebar is drawn by neither renderer of nodes: one of them will do, where no node is touched.
in_one_renderer = pytest.mark.parametrize("frontend", ["canvas"], indirect=True)

LONG = 500  # steps: more than a test waits for
SHORT = 4
numbers = count(1)


def submit(host: Host, phrase: str, steps: int) -> dict[str, Any]:
    """Queues a training that is cheap per step."""
    small = {"erase_prompts": 2, "preserve_prompts": 2, "batch_erase": 2, "batch_preserve": 2, "sample_count": 1}
    return host.post(
        JOBS,
        {
            "concept": {"phrase": phrase, "synonyms": [], "irrelevant": ["house", "tree", "apple"]},
            "config": {"steps": steps, "sample_every": 2, "checkpoint_every": 5, "lr_erase": 2e-3, **small},
            "name": f"sidebar-{phrase}-{next(numbers)}",
        },
    )


def open_tab(frontend: Frontend) -> Locator:
    frontend.page.locator(".erase-anything-tab-button").click()
    sidebar = frontend.page.locator(".ea-sidebar")
    expect(sidebar).to_be_visible()
    return sidebar


def card_of(frontend: Frontend, job: dict[str, Any]) -> Locator:
    return frontend.page.locator(f'.ea-card[data-job="{job["id"]}"]')


def step_of(card: Locator) -> int:
    found = re.search(r"\d+", card.locator(".ea-steps").inner_text())
    return int(found.group()) if found else 0


def wait_for_state(card: Locator, state: str) -> None:
    expect(card).to_have_attribute("data-state", state, timeout=240_000)


def wait_until_past(card: Locator, step: int) -> None:
    pattern = r"(card, step) => Number(card.querySelector('.ea-steps').textContent.match(/\d+/)?.[0]) > step"
    deadline = time.monotonic() + 300
    while not card.evaluate(pattern, step):
        assert time.monotonic() < deadline, card.inner_text()
        time.sleep(0.1)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def clean(frontend: Frontend) -> Iterator[Frontend]:
    """A server without jobs, before and after."""

    def sweep() -> None:
        for job in frontend.host.get(JOBS)["jobs"]:
            frontend.host.request("POST", f"{JOBS}/{job['id']}/cancel", {})
        deadline = time.monotonic() + 120
        while left := frontend.host.get(JOBS)["jobs"]:
            for job in left:
                frontend.host.request("POST", f"{JOBS}/{job['id']}/delete", {})
            assert time.monotonic() < deadline
            time.sleep(0.2)

    sweep()
    yield frontend
    sweep()


def test_a_job_from_start_to_lora(clean: Frontend) -> None:
    frontend, page, host = clean, clean.page, clean.host
    frontend.open("2_use_an_erasure_lora")
    frontend.errors.clear()
    sidebar = open_tab(frontend)
    expect(sidebar).to_contain_text("No trainings yet")
    badge = page.locator(".erase-anything-tab-button :is(.p-badge, .sidebar-icon-badge)")  # older, newer frontends
    expect(badge).to_have_count(0)

    # Submitted elsewhere, it appears by itself, opens, and moves.
    long = submit(host, "umbrella", LONG)
    card = card_of(frontend, long)
    wait_for_state(card, "running")
    expect(badge).to_have_text("1")
    expect(card).to_contain_text("umbrella")
    expect(card).to_contain_text("flux-emoji")
    wait_until_past(card, 2)
    before = step_of(card)
    wait_until_past(card, before)
    assert card.locator(".ea-fill").evaluate("(fill) => parseFloat(fill.style.width)") > 0
    expect(card.locator(".ea-speed")).not_to_be_empty()

    # Curves: the values of any step, under the pointer and by the keyboard.
    curves = card.locator(".ea-losses")
    expect(curves.locator("path.ea-mean").first).to_have_attribute("d", re.compile(r"^M.*L"))
    told = [e for e in host.get(f"{JOBS}/{long['id']}/events")["events"] if e["type"] == "step"]
    curves.focus()
    page.keyboard.press("Home")
    expect(curves).to_have_attribute("aria-valuenow", "1")
    shown = float(card.locator('[data-loss="esd"] .ea-loss').first.inner_text())
    assert shown == pytest.approx(told[0]["losses"]["esd"], rel=0.01)
    page.keyboard.press("ArrowRight")
    expect(curves).to_have_attribute("aria-valuetext", re.compile("^step 2:"))
    plot = card.locator('[data-loss="esd"] .ea-plot')
    plot.hover(position={"x": 1, "y": 10})
    expect(curves).to_have_attribute("aria-valuenow", "1")

    # Samples: a row per step, enlarged with a slider between the first step and the chosen one.
    newest = card.locator('.ea-sample[data-file*="step-000002"]').first
    newest.scroll_into_view_if_needed()
    newest.click()
    viewer = page.get_by_role("dialog", name="Samples of")
    slider = viewer.get_by_role("slider")
    expect(slider).to_be_focused()
    page.keyboard.press("End")
    expect(slider).to_have_value("100")
    viewer.get_by_label("Compare with").select_option("step 0")
    expect(slider).to_have_count(0)  # there is nothing to compare the first step with
    drawn = card.locator(".ea-sample").count()
    wait_until(lambda: card.locator(".ea-sample").count() > drawn)  # a later step comes behind the viewer
    page.keyboard.press("Escape")
    expect(viewer).to_have_count(0)
    expect(newest).to_be_focused()

    # A reload loses nothing: the step never falls back, the curves are there again.
    before = step_of(card)
    frontend.reload()
    open_tab(frontend)
    wait_for_state(card, "running")
    expect(card.locator(".ea-steps")).not_to_be_empty()
    assert step_of(card) >= before
    expect(curves.locator("path.ea-mean").first).to_have_attribute("d", re.compile(r"^M.*L"))

    card.get_by_role("button", name="Pause").click()
    wait_for_state(card, "paused")
    paused = step_of(card)
    assert host.get(f"{JOBS}/{long['id']}")["step"] == paused
    expect(badge).to_have_count(0)

    # Another one to its end, while the page looks on: the lists of LoRAs have the new file by themselves.
    short = submit(host, "car", SHORT)
    done = card_of(frontend, short)
    wait_for_state(done, "completed")
    expect(page.locator(".p-toast-message-success").filter(has_text=short["name"])).to_be_visible()
    expect(done.locator(".ea-sentence")).to_have_text(f"Saved as {short['name']}.safetensors")

    nodes = "app.graph.nodes.filter((node) => node.type === '{}')"
    name = f"{short['name']}.safetensors"
    page.wait_for_function(
        f"(name) => {nodes.format('LoraLoader')}[0].widgets[0].options.values.includes(name)", arg=name
    )
    done.get_by_role("button", name="Add Load LoRA node").click()
    page.wait_for_function(nodes.format("LoraLoader") + ".length === 2")
    assert page.evaluate(nodes.format("LoraLoader") + "[1].widgets[0].value") == name
    # Wired in the other one's place, it renders.
    page.evaluate(
        """() => {
            const [old, added] = app.graph.nodes.filter((node) => node.type === "LoraLoader");
            for (const slot of [0, 1]) old.getInputNode(slot).connect(old.getInputLink(slot).origin_slot, added, slot);
            for (const slot of [0, 1]) {
                for (const link of [...old.outputs[slot].links].map((id) => app.graph.links.get(id))) {
                    added.connect(slot, app.graph.getNodeById(link.target_id), link.target_slot);
                }
            }
        }"""
    )
    ran = set(host.get("/history"))
    frontend.queue()
    wait_until(lambda: set(host.get("/history")) > ran)
    rendered = host.get("/history")[(set(host.get("/history")) - ran).pop()]
    assert rendered["status"]["completed"] and rendered["prompt"][2]
    assert [file["type"] for output in rendered["outputs"].values() for file in output["images"]] == ["output"] * 4
    assert name in [node["inputs"].get("lora_name") for node in rendered["prompt"][2].values()]
    with page.expect_download() as download:
        done.get_by_role("link", name="Download").click()
    lora = host.base / "models" / "loras" / f"{short['name']}.safetensors"
    assert download.value.suggested_filename == lora.name
    assert download.value.path().read_bytes() == lora.read_bytes()
    done.get_by_role("button", name="Copy settings").click()
    page.wait_for_function(nodes.format("EraseAnything_Train") + ".length === 1")
    toast = page.locator(".p-toast-message").filter(has_text="Settings copied")
    expect(toast).to_be_visible()
    widgets = page.evaluate(
        "Object.fromEntries(" + nodes.format("EraseAnything_Train") + "[0].widgets.map((w) => [w.name, w.value]))"
    )
    assert (widgets["steps"], widgets["sample_every"], widgets["name"]) == (SHORT, 2, "")
    # A setting without a widget is not passed over in silence.
    defaults = host.get("/erase_anything/v1/config")["config"]
    for setting, value in host.get(f"{JOBS}/{short['id']}/request")["config"].items():
        if value != defaults[setting]:
            assert widgets.get(setting) == value or setting in toast.inner_text(), setting

    card.get_by_role("button", name="Resume").click()
    wait_for_state(card, "running")
    wait_until_past(card, paused)
    card.get_by_role("button", name="Stop").click()
    wait_for_state(card, "cancelled")
    assert host.get(f"{JOBS}/{long['id']}")["state"] == "cancelled"
    assert not [error for error in frontend.errors if "erase" in error.lower()], frontend.errors


@in_one_renderer
def test_the_queue_is_reordered_repeated_and_cleared(clean: Frontend) -> None:
    frontend, page, host = clean, clean.page, clean.host
    frontend.open()
    frontend.errors.clear()
    sidebar = open_tab(frontend)
    slots = "app.extensionManager.setting.{}('EraseAnything.Slots'{})"
    try:
        page.evaluate(slots.format("set", ", 0"))  # as the settings dialog does it
        wait_until(lambda: host.get("/erase_anything/v1/settings")["slots"] == 0)
        first, second = submit(host, "car", SHORT), submit(host, "cat", SHORT)
        order = sidebar.locator(".ea-card")
        expect(order).to_have_count(2)
        card_of(frontend, second).get_by_role("button", name="Up").click()
        expect(order.first).to_have_attribute("data-job", second["id"])
        assert host.get(JOBS)["queue"] == [second["id"], first["id"]]
        expect(card_of(frontend, second).get_by_role("button", name="Up")).to_have_count(0)  # it is the first
        card_of(frontend, second).get_by_role("button", name="Down").click()
        expect(order.first).to_have_attribute("data-job", first["id"])

        # Stopped, trained again as a new job with the next seed; then deleted, after a question.
        card = card_of(frontend, first)
        card.get_by_role("button", name="Stop").click()
        wait_for_state(card, "cancelled")
        card.get_by_role("button", name="Train again").click()
        expect(order).to_have_count(3)
        again = next(job for job in host.get(JOBS)["jobs"] if job["parent"] == first["id"])
        assert host.get(f"{JOBS}/{again['id']}/request")["config"]["seed"] == 1
        card.get_by_role("button", name="Delete").click()
        question = page.get_by_role("dialog", name="Delete a training")
        expect(question).to_contain_text(first["name"])
        expect(question.get_by_role("checkbox")).to_have_count(0)  # it wrote no LoRA
        page.keyboard.press("Escape")
        expect(question).to_have_count(0)
        assert host.get(f"{JOBS}/{first['id']}")["state"] == "cancelled"
        card.get_by_role("button", name="Delete").click()
        question.get_by_role("button", name="Delete").click()
        expect(order).to_have_count(2)
        assert first["id"] not in [job["id"] for job in host.get(JOBS)["jobs"]]
        assert not [error for error in frontend.errors if "erase" in error.lower()], frontend.errors
    finally:
        host.post("/erase_anything/v1/settings", {"slots": 1})
        page.evaluate(slots.format("set", ", 1"))


@in_one_renderer
@pytest.mark.parametrize("palette", ["dark", "light"])
def test_axe_finds_nothing_wrong(clean: Frontend, palette: str) -> None:
    """Contrast, names and roles of everything on a card, its viewer and its questions, in both themes."""
    frontend, page, host = clean, clean.page, clean.host
    host.post("/settings", {"Comfy.ColorPalette": palette})
    try:
        job = submit(host, "umbrella", SHORT)
        frontend.open()
        open_tab(frontend)
        card = card_of(frontend, job)
        wait_for_state(card, "completed")
        card.locator("details summary").first.click()
        for opens, shown in (
            (None, ".ea-sidebar"),
            (".ea-sample", ".ea-viewer"),
            ("[data-action=delete]", ".ea-viewer"),
        ):
            if opens:
                card.locator(opens).first.click()
            found = Axe().run(page, context=shown)
            assert not found.violations_count, found.generate_report()
            if opens:
                page.keyboard.press("Escape")
    finally:
        host.post("/settings", {"Comfy.ColorPalette": "dark"})


@in_one_renderer
def test_keyboard_alone_in_a_narrow_sidebar(clean: Frontend) -> None:
    frontend, page, host = clean, clean.page, clean.host
    job = submit(host, "a rather long concept that has many words", 2)
    host.post(f"{JOBS}/{job['id']}/pause", {})
    page.emulate_media(reduced_motion="reduce")
    frontend.open()
    page.locator("#graph-canvas").focus()
    page.keyboard.press("e")
    sidebar = page.locator(".ea-sidebar")
    expect(sidebar.get_by_role("heading", name="Erasure")).to_be_focused()
    page.evaluate(
        """() => Object.assign(document.querySelector(".side-bar-panel").style,
            { flexBasis: "320px", minWidth: "320px", maxWidth: "320px" })"""
    )
    card = card_of(frontend, job)
    wait_for_state(card, "paused")
    assert sidebar.evaluate("(element) => element.scrollWidth <= element.clientWidth")
    duration = card.locator(".ea-fill").evaluate("(fill) => getComputedStyle(fill).transitionDuration")
    assert duration in ("0s", "1e-06s")  # ours, or the one that newer frontends set for everything
    toggle = card.locator(".ea-toggle")
    toggle.focus()
    expect(toggle).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Enter")
    expect(toggle).to_have_attribute("aria-expanded", "false")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.action") == "resume"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    wait_for_state(card, "cancelled")
    assert page.evaluate("document.activeElement.dataset.action") == "resume"  # the focus stays in the card
    expect(sidebar.get_by_role("status")).to_contain_text("Stopped")


@in_one_renderer
def test_a_thousand_jobs(clean: Frontend) -> None:
    """Ended ones, written to disk as a worker leaves them."""
    frontend, host = clean, clean.host
    job = submit(host, "cat", 2)
    host.post(f"{JOBS}/{job['id']}/cancel", {})
    store = host.base / "user" / "__erase_anything" / "jobs"
    record, state = (json.loads((store / job["id"] / name).read_text()) for name in ("job.json", "state.json"))
    made = [store / f"20200101-{i:06d}-many" for i in range(1000)]
    for number, folder in enumerate(made):
        folder.mkdir()
        (folder / "job.json").write_text(json.dumps({**record, "digest": folder.name, "created": float(number)}))
        (folder / "state.json").write_text(json.dumps({**state, "state": "failed", "pid": None}))
    try:
        frontend.open()
        sidebar = open_tab(frontend)
        expect(sidebar.locator(".ea-card")).to_have_count(30)
        sidebar.get_by_role("button", name=re.compile("^Show .* older")).click()
        expect(sidebar.locator(".ea-card")).to_have_count(60)
        expect(sidebar.locator(".ea-summary")).to_contain_text("1001 in all")
    finally:
        for folder in made:
            shutil.rmtree(folder)


@in_one_renderer
def test_in_chinese(clean: Frontend) -> None:
    frontend, host = clean, clean.host
    job = submit(host, "car", 2)
    host.post(f"{JOBS}/{job['id']}/pause", {})
    host.post("/settings", {"Comfy.Locale": "zh"})
    try:
        frontend.open()
        expect(frontend.page.locator(".erase-anything-tab-button")).to_contain_text("擦除")
        open_tab(frontend)
        card = card_of(frontend, job)
        wait_for_state(card, "paused")
        expect(card.locator(".ea-state")).to_have_text("已暂停")
        expect(card.get_by_role("button", name="继续")).to_be_visible()
    finally:
        host.post("/settings", {"Comfy.Locale": "en"})
