"""An evaluation on its nodes, as a user sees it: it moves, ends, its report opens, and the sidebar has its card."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.support.loras import random_lora
from training.concepts import Concept
from training.lora.format import make_metadata, write_lora

from .conftest import JOBS, Frontend
from .test_training import step_of, wait_for_state


def test_an_evaluation_and_its_report(frontend: Frontend) -> None:
    page, host = frontend.page, frontend.host
    for old in host.get(JOBS)["jobs"]:
        host.post(f"{JOBS}/{old['id']}/delete", {})
    concept = Concept("car", synonyms=("automobile",)).to_dict()
    metadata = make_metadata(concept=concept, method="esd", base="", config={}, metrics={}, version="0")
    file = host.base / "models" / "loras" / "erase-car.safetensors"
    write_lora(file, random_lora(0, hidden=256), metadata)
    frontend.open("9_prove_it")
    for widget, value in {"images": 2, "images_per_other": 0, "images_per_attack": 1, "batch_size": 2}.items():
        frontend.set("EraseAnything_Evaluate", widget, value)
    panel = page.locator(".ea-panel").first
    report = page.locator(".ea-panel").nth(1)
    expect(panel).to_contain_text("measure in the background")
    expect(report).to_contain_text("Run the graph")
    frontend.errors.clear()
    frontend.queue()

    wait_for_state(panel, "running")
    expect(panel.locator(".ea-state")).to_have_text("Evaluating")
    page.wait_for_function(r"() => /[1-9]/.test(document.querySelector('.ea-steps').textContent)")
    assert step_of(panel) > 0
    wait_for_state(panel, "completed", 600)
    expect(panel.locator(".ea-report[data-action]")).to_have_count(1)

    frame = report.locator("iframe.ea-report-page")
    expect(frame).to_be_visible()
    inside = frame.content_frame
    expect(inside.locator("h1")).to_contain_text("car")
    assert inside.locator("img").evaluate_all("all => all.length > 5 && all.every((image) => image.naturalWidth > 0)")
    # Far from the host's page: the report's own origin is nobody's.
    assert inside.locator("body").evaluate("() => self.origin") == "null"
    links = report.locator("a.ea-button")
    assert links.all_inner_texts() == ["Open in a tab", "Save the page", "Save the figures (JSON)"]
    for number in (1, 2):
        with page.expect_download() as download:
            links.nth(number).click()
        assert download.value.path().stat().st_size > 1000
    with page.expect_popup() as popup:
        links.first.click()
    popup.value.wait_for_load_state()
    expect(popup.value.locator("h1")).to_contain_text("car")
    popup.value.close()

    page.keyboard.press("e")
    card = page.locator(".ea-card")
    expect(card).to_have_count(1)
    offered = card.locator("[data-action]").evaluate_all("all => all.map((one) => one.dataset.action)")
    assert offered == ["report", "measureAgain", "delete"]
    expect(card.locator(".ea-sentence")).to_contain_text("Measured")
    page.keyboard.press("e")

    assert frontend.errors == []

    # A saved workflow shows its job and its report again.
    frontend.page.wait_for_timeout(1000)
    frontend.reload()
    expect(page.locator(".ea-panel").first).to_have_attribute("data-state", "completed")
    expect(page.locator("iframe.ea-report-page")).to_be_visible()
    assert not [error for error in frontend.errors if "erase" in error.lower()]  # the host's own 404s aside
    file.unlink()
