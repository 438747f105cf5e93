"""A training on the Train node, as a user sees it: it moves, survives a reload, pauses, resumes, stops."""

from __future__ import annotations

import re
from itertools import count

from playwright.sync_api import Locator, expect

from .conftest import JOBS, Frontend

STEPS = 400  # more than a test waits for: the last act is Stop
numbers = count(1)


def step_of(panel: Locator) -> int:
    found = re.search(r"\d+", panel.locator(".ea-steps").inner_text())
    return int(found.group()) if found else 0


def wait_until_past(panel: Locator, step: int) -> None:
    panel.page.wait_for_function(
        r"(step) => Number(document.querySelector('.ea-steps').textContent.match(/\d+/)?.[0]) > step",
        arg=step,
        timeout=120_000,
    )


def wait_for_state(panel: Locator, state: str, seconds: float = 240) -> None:
    expect(panel).to_have_attribute("data-state", state, timeout=seconds * 1000)


def test_training_on_its_node(frontend: Frontend) -> None:
    page, host = frontend.page, frontend.host
    for old in host.get(JOBS)["jobs"]:  # of the other renderer: a node without a job shows its concept's newest
        host.post(f"{JOBS}/{old['id']}/delete", {})
    frontend.open("1_erase_and_compare")
    name = f"browser-{next(numbers)}"
    settings = {"name": name, "steps": STEPS, "sample_every": 5, "erase_prompts": 2, "preserve_prompts": 2}
    for widget, value in settings.items():
        frontend.set("EraseAnything_Train", widget, value)
    panel = page.locator(".ea-panel")
    expect(panel).to_have_attribute("data-state", "none")
    frontend.errors.clear()
    frontend.queue()

    # It moves, and says what the server says.
    wait_for_state(panel, "running")
    expect(panel.locator(".ea-loss").first).to_be_visible(timeout=240_000)
    first = step_of(panel)
    wait_until_past(panel, first)
    width = panel.locator(".ea-fill").evaluate("(fill) => parseFloat(fill.style.width)")
    assert 0 < width <= 100
    expect(panel.locator(".ea-samples img").first).to_be_visible(timeout=240_000)
    assert (
        panel.locator(".ea-samples img").first.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 0
    )
    expect(page.locator(".ea-wait .ea-sentence")).to_contain_text(name)
    expect(page.locator(".ea-wait .ea-steps")).to_contain_text(f"of {STEPS}")
    words = page.locator(".ea-words .ea-word")
    assert words.count() > 3

    # The server's state after a reload: the step never falls back.
    before = step_of(panel)
    frontend.reload()
    wait_for_state(panel, "running")
    page.wait_for_function("document.querySelector('.ea-steps')?.textContent")
    assert step_of(panel) >= before > 0
    job = host.get(f"{JOBS}/{panel.get_attribute('data-job')}")
    assert job["name"] == name and job["total"] == STEPS

    # The buttons do what they say, seen from afar too.
    panel.get_by_role("button", name="Pause").click()
    wait_for_state(panel, "paused")
    paused = step_of(panel)
    assert host.get(f"{JOBS}/{job['id']}")["step"] == paused
    panel.get_by_role("button", name="Resume").click()
    wait_for_state(panel, "running")
    wait_until_past(panel, paused)
    panel.get_by_role("button", name="Stop").click()
    wait_for_state(panel, "cancelled")
    assert host.get(f"{JOBS}/{job['id']}")["state"] == "cancelled"
