"""The heatmap viewer on Token Heatmaps, as a user explores it: words, pixels, sliders, colours."""

from __future__ import annotations

import numpy as np
from playwright.sync_api import Locator, expect

from .conftest import Frontend

WORKFLOW = "4_which_words_paint_what"
WORDS = ["a", "cat", "next", "to", "a", "car", "on", "a", "blue", "background", "end token", "padding"]


def painted(viewer: Locator) -> np.ndarray:
    """What the map's canvas shows, [rows, columns, 4]."""
    rows, columns, values = viewer.locator(".ea-stage canvas").evaluate(
        """(canvas) => [canvas.height, canvas.width,
            [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]]"""
    )
    return np.array(values).reshape(rows, columns, 4)


def slide(viewer: Locator, axis: str, position: int) -> None:
    """Move a slider as its user does, by the keyboard."""
    slider = viewer.locator(f"input[data-axis={axis}]")
    slider.focus()
    slider.press("Home")
    for _ in range(position + 1):
        slider.press("ArrowRight")


def test_exploring_heatmaps(frontend: Frontend) -> None:
    page = frontend.page
    frontend.open(WORKFLOW)
    viewer = page.locator(".ea-heatmaps")
    expect(viewer).to_contain_text("Run the graph")
    frontend.errors.clear()
    frontend.queue()

    # The prompt as word chips, end token and padding apart, one of them shown.
    chips = viewer.locator(".ea-chips button")
    expect(chips).to_have_text(WORDS, timeout=300_000)
    expect(viewer.locator(".ea-special")).to_have_count(2)
    expect(viewer.locator(".ea-shown")).to_have_count(1)
    image = viewer.locator(".ea-stage img")
    assert image.evaluate("(image) => image.decode().then(() => [image.naturalWidth, image.naturalHeight])") == [
        128,
        128,
    ]

    # Pointing at a word shows its map, on one scale with the others; a click keeps it.
    maps = {}
    readout = viewer.locator(".ea-readout")
    for word in ("car", "cat"):
        chip = chips.get_by_text(word, exact=True)
        chip.hover()
        expect(readout).to_contain_text(f"{word}:")
        maps[word] = painted(viewer)
        assert maps[word].shape == (8, 8, 4) and len(np.unique(maps[word].reshape(-1, 4), axis=0)) > 5
    assert not np.array_equal(maps["car"], maps["cat"])
    chips.get_by_text("car", exact=True).click()
    page.mouse.move(5, 5)
    expect(readout).to_contain_text("car:")
    assert np.array_equal(painted(viewer), maps["car"])
    expect(chips.get_by_text("car", exact=True)).to_have_attribute("aria-pressed", "true")

    # Pointing at a pixel ranks the words there.
    viewer.locator(".ea-stage").hover()
    expect(readout).to_contain_text(",")
    shares = [float(part.split()[-2]) for part in readout.inner_text().split(",")]
    assert len(shares) == 5 and shares == sorted(shares, reverse=True)
    page.mouse.move(5, 5)

    # Every slider changes the map, and its left end is the mean again.
    for axis in ("time", "block", "head"):
        slider = viewer.locator(f"input[data-axis={axis}]")
        if not slider.count():
            continue
        slide(viewer, axis, 0)
        assert not np.array_equal(painted(viewer), maps["car"]), axis
        slider.press("Home")
        assert np.array_equal(painted(viewer), maps["car"])
    expect(viewer.locator("input[data-axis=time]")).to_have_count(1)
    expect(viewer.locator("input[data-axis=head]")).to_have_count(1)

    # Colours, scale and opacity.
    viewer.locator("select").select_option("grey")
    grey = painted(viewer)
    assert (grey[..., 0] == grey[..., 1]).all() and not np.array_equal(grey, maps["car"])
    shared = viewer.locator("input[type=checkbox]")
    expect(shared).to_be_checked()
    top = viewer.locator(".ea-scale output").inner_text()
    chips.get_by_text("on", exact=True).click()
    shared.uncheck()
    assert viewer.locator(".ea-scale output").inner_text() != top
    opacity = viewer.locator("label", has_text="opacity").locator("input")
    opacity.focus()
    opacity.press("Home")
    assert viewer.locator(".ea-stage canvas").evaluate("(canvas) => canvas.style.opacity") == "0"
    assert not [error for error in frontend.errors if "erase" in error.lower()], frontend.errors


def test_a_second_run_replaces_the_first(frontend: Frontend) -> None:
    frontend.open(WORKFLOW)
    frontend.set("PrimitiveStringMultiline", "value", "a (penguin:1.2), alone!")
    frontend.set("KSampler", "steps", 3)
    frontend.queue()
    chips = frontend.page.locator(".ea-heatmaps .ea-chips button")
    expect(chips).to_have_text(["a", "penguin", ",", "alone", "!", "end token", "padding"], timeout=300_000)
    frontend.set("PrimitiveStringMultiline", "value", "two cats")
    frontend.queue()
    expect(chips).to_have_text(["two", "cats", "end token", "padding"], timeout=300_000)
