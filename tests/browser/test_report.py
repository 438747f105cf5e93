"""The Erasure Report in a browser, from the disk: silent, without a request, accessible in both colour schemes."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from tests.support.reports import make_evaluation
from training.evaluation.report import write_report


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("blur", [False, True])
def test_the_page_works_from_the_disk(browser: Browser, tmp_path: Path, scheme: str, blur: bool):
    evaluation, out = make_evaluation(tmp_path / "run"), tmp_path / "report.html"
    write_report({**evaluation, "blur": blur}, tmp_path / "run", out)
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1000, "height": 800})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(out.as_uri())
    images = page.locator("img")
    assert images.evaluate_all("all => all.length > 20 && all.every((image) => image.naturalWidth === 32)")
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    found = Axe().run(page).response["violations"]
    assert [(v["id"], [node["html"][:200] for node in v["nodes"]]) for v in found] == []
    veils = page.locator(".veil")
    if blur:
        assert veils.count() == images.count()
        veil = veils.first
        expect(veil.locator("img")).to_have_css("filter", "blur(18px) saturate(0.3)")
        veil.focus()
        page.keyboard.press("Enter")
        expect(veil).to_have_attribute("aria-pressed", "true")
        expect(veil.locator("img")).to_have_css("filter", "none")
        expect(veils.nth(1).locator("img")).not_to_have_css("filter", "none")
        page.keyboard.press("Space")
        expect(veil).to_have_attribute("aria-pressed", "false")
    else:
        assert veils.count() == 0
    for width in (1000, 360):  # nothing but tables may need to be scrolled sideways
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert said == [] and [url for url in asked if not url.startswith("data:")] == [out.as_uri()]
    page.close()
