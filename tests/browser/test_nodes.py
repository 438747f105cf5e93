"""What the nodes' panels do: advanced settings come and go, a concept's words are shown before the run and chosen by a
click, and WordNet is fetched by a click alone."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nltk
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, expect

from scripts.host import Host
from scripts.pictures import FRAME

from .conftest import Frontend, new_frontend

TRAIN = "EraseAnything_Train"
CONCEPT = "EraseAnything_Concept"
PRESET = "EraseAnything_Preset"
ADD = "([type, x, y]) => { const node = LiteGraph.createNode(type); node.pos = [x, y]; app.graph.add(node); }"
NODE = "app.graph.nodes.find((node) => node.type === type)"


def value(frontend: Frontend, node_type: str, widget: str) -> object:
    return frontend.page.evaluate(
        f"([type, name]) => {NODE}.widgets.find((widget) => widget.name === name).value", [node_type, widget]
    )


def shown(frontend: Frontend, vue: bool) -> int:
    """How many widgets of the Train node can be seen: rows of a Vue node, else what the canvas draws."""
    if vue:
        return frontend.page.locator(".lg-node-widgets:has(.ea-advanced) > .lg-node-widget:visible").count()
    return frontend.page.evaluate(
        f"(type) => {{ const node = {NODE}; return node.widgets.filter((w) => node.isWidgetVisible(w)).length; }}",
        TRAIN,
    )


def height(frontend: Frontend) -> float:
    return frontend.page.evaluate(f"(type) => {NODE}.computeSize()[1]", TRAIN)


def test_advanced_settings_come_go_and_are_kept(frontend: Frontend, request: pytest.FixtureRequest) -> None:
    page, vue = frontend.page, "vue" in request.node.name
    optional = frontend.host.get(f"/object_info/{TRAIN}")[TRAIN]["input"]["optional"]
    frontend.open("1_erase_and_compare")
    button = page.locator(".ea-advanced")
    expect(button).to_have_text(f"Show {len(optional)} advanced settings")
    before, low = shown(frontend, vue), height(frontend)
    assert before == 13  # eleven settings (the name is one of them), this button and the job's panel

    # No default is touched by the frontend's rounding, and finer values than the default's digits are kept.
    changed = page.evaluate(
        f"""(type) => {NODE}.widgets.filter((widget) => typeof widget.value === "number").filter((widget) => {{
                const before = widget.value;
                widget.callback(before);
                return widget.value !== before;
            }}).map((widget) => widget.name)""",
        TRAIN,
    )
    assert not changed
    button.click()
    expect(button).to_have_text("Hide advanced settings")
    assert shown(frontend, vue) == before + len(optional)
    assert height(frontend) > low + 20 * len(optional)
    frontend.set(TRAIN, "lr_erase", 0.00025)
    frontend.set(TRAIN, "blocks", "0-1")
    assert value(frontend, TRAIN, "lr_erase") == 0.00025

    # A workflow keeps the values, and whether they are shown.
    page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")
    page.wait_for_timeout(1000)  # the frontend saves its draft a little later
    frontend.reload()
    expect(button).to_have_text("Hide advanced settings")
    assert value(frontend, TRAIN, "lr_erase") == 0.00025 and value(frontend, TRAIN, "blocks") == "0-1"
    assert shown(frontend, vue) == before + len(optional)
    if not vue:  # the canvas has the same in the node's menu
        menu = f"(type) => app.canvas.getNodeMenuOptions({NODE}).map((entry) => entry?.content)"
        assert "Hide Advanced" in page.evaluate(menu, TRAIN)

    # Out of sight again they still go into the prompt.
    button.click()
    expect(button).to_have_text(f"Show {len(optional)} advanced settings")
    assert shown(frontend, vue) == before and height(frontend) == low
    prompt = page.evaluate("app.graphToPrompt().then(({ output }) => output)")
    inputs = next(node["inputs"] for node in prompt.values() if node["class_type"] == TRAIN)
    assert inputs["lr_erase"] == 0.00025 and inputs["blocks"] == "0-1" and set(optional) <= set(inputs)


def test_a_meaning_is_chosen_by_a_click(frontend: Frontend) -> None:
    page = frontend.page
    frontend.open("1_erase_and_compare")
    senses, chosen = page.locator(".ea-sense"), page.locator('.ea-sense[aria-pressed="true"]')
    frontend.set(CONCEPT, "phrase", "crane")
    expect(senses.filter(has_text="wading bird")).to_have_count(1)
    assert senses.count() == 3
    expect(chosen.locator(".ea-label")).to_have_text("1")
    senses.filter(has_text="wading bird").click()
    number = int(chosen.locator(".ea-label").inner_text())
    assert number > 1 and value(frontend, CONCEPT, "sense") == number
    more = page.locator(".ea-senses .ea-more")
    more.click()
    expect(more).to_have_count(0)
    assert senses.count() > 3 and chosen.count() == 1

    # The number was one of that word's meanings; a name that WordNet lacks has none.
    frontend.set(CONCEPT, "phrase", "Pikachu")
    expect(page.locator(".ea-senses")).to_have_text("WordNet does not know “Pikachu”.")
    assert value(frontend, CONCEPT, "sense") == 1


def look_at(frontend: Frontend, node_type: str) -> None:
    """Brings the node into the middle of the page, where nothing lies over its buttons."""
    frontend.page.evaluate(FRAME, [[node_type], 24])
    frontend.page.wait_for_timeout(500)


def group(frontend: Frontend, name: str) -> Locator:
    """The words of one kind on the panel, without the row's label."""
    return frontend.page.get_by_role("group", name=name, exact=True).locator(".ea-word")


def test_words_are_shown_before_the_run_and_chosen_by_a_click(frontend: Frontend) -> None:
    page = frontend.page
    same, left_out = group(frontend, "means the same"), group(frontend, "left out")
    frontend.open("1_erase_and_compare")
    frontend.set(CONCEPT, "phrase", "gun")
    found = frontend.host.post("/erase_anything/v1/concept", {"phrase": "gun"})
    expect(group(frontend, "prompt")).to_have_text("a photo of a gun")
    expect(same).to_have_text(found["synonyms"])
    expect(group(frontend, "unrelated")).to_have_text(found["irrelevant"])
    expect(left_out).to_have_text([each["word"] for each in found["remarks"]["left_out"]])
    expect(page.locator(".ea-words")).to_contain_text("Connected: flux. The run may choose other words.")
    look_at(frontend, CONCEPT)
    kept = group(frontend, "kept")
    expect(kept).to_have_count(3)
    page.get_by_role("button", name=f"and {len(found['preserve']) - 3} more").click()
    expect(kept).to_have_count(len(found["preserve"]))

    # A word that was left out is taken in, and none of the automatic ones is lost.
    pistol = page.get_by_role("button", name="pistol", exact=True)
    expect(pistol).to_have_attribute("aria-pressed", "false")
    expect(pistol).to_have_attribute("title", "One kind of it, not all\n\nClick to erase it too")
    pistol.click()
    expect(same).to_have_text([*found["synonyms"], "pistol"])
    assert value(frontend, CONCEPT, "synonyms") == ", ".join([*found["synonyms"], "pistol"])
    expect(pistol).to_have_attribute("aria-pressed", "true")
    expect(pistol).to_be_focused()

    # By keyboard it goes out again; the last one leaves a list that is empty, not automatic.
    pistol.press("Enter")
    expect(same).to_have_text(found["synonyms"])
    for word in found["synonyms"]:
        button = page.get_by_role("button", name=word, exact=True)
        button.click()
        expect(button).to_have_attribute("aria-pressed", "false")
    expect(same).to_have_text("none")
    assert value(frontend, CONCEPT, "synonyms") == "-"

    # A reload keeps what was chosen, and shows it without a run.
    page.wait_for_timeout(1000)  # the frontend saves its draft a little later
    frontend.reload()
    expect(group(frontend, "prompt")).to_have_text("a photo of a gun")
    expect(same).to_have_text("none")
    assert value(frontend, CONCEPT, "synonyms") == "-"
    assert not [error for error in frontend.errors if "erase" in error.lower()], frontend.errors
    frontend.set(CONCEPT, "template", "no place for it")
    expect(page.locator(".ea-words")).to_contain_text('The template "no place for it" must have {} once')


def test_a_kind_that_looks_wrong_is_said_and_changed_by_a_click(frontend: Frontend) -> None:
    page, hint = frontend.page, frontend.page.locator(".ea-hint")
    frontend.open("1_erase_and_compare")
    expect(page.locator(".ea-word").first).to_be_visible()
    expect(hint).to_have_count(0)  # a car is a thing
    look_at(frontend, CONCEPT)
    for phrase, kind in (("next to", "relationship"), ("Van Gogh", "abstraction")):
        frontend.set(CONCEPT, "kind", "entity")
        frontend.set(CONCEPT, "phrase", phrase)
        expect(page.get_by_role("status").filter(has_text=f'"{phrase}" looks like')).to_be_visible()
        page.get_by_role("button", name=f"Set kind to {kind}").click()
        expect(hint).to_have_count(0)
        assert value(frontend, CONCEPT, "kind") == kind
        found = frontend.host.post("/erase_anything/v1/concept", {"phrase": phrase, "kind": kind})
        expect(group(frontend, "prompt")).to_have_text(found["remarks"]["prompt"])


def test_boxes_have_their_names_above_them(frontend: Frontend, request: pytest.FixtureRequest) -> None:
    page, vue = frontend.page, "vue" in request.node.name
    frontend.open("1_erase_and_compare")
    expect(page.locator(".ea-word").first).to_be_visible()
    look_at(frontend, CONCEPT)
    for name, typed in (("synonyms", "auto\nwagon"), ("irrelevant", "teapot, spoon, kite")):
        box = page.get_by_label(name, exact=True)
        box.fill(typed)
        label = page.locator(".ea-box", has=box).get_by_text(name, exact=True)
        above, below = label.bounding_box(), box.bounding_box()
        assert above and below and above["height"] > 5 and below["height"] > 20 and below["width"] > 100
        assert above["y"] + above["height"] <= below["y"] + 1
        position = f"(type) => {NODE}.pos.join()"
        before = page.evaluate(position, CONCEPT)
        page.mouse.move(below["x"] + 5, below["y"] + 8)  # selects text, and does not move the node
        page.mouse.down()
        page.mouse.move(below["x"] + 60, below["y"] + 40, steps=5)
        page.mouse.up()
        assert page.evaluate(position, CONCEPT) == before
    expect(group(frontend, "means the same")).to_have_text(["auto", "wagon"])
    expect(group(frontend, "unrelated")).to_have_text(["teapot", "spoon", "kite"])

    # What is typed goes where it went before: into the prompt by its name, into the workflow by its position.
    prompt = page.evaluate("app.graphToPrompt().then(({ output }) => output)")
    inputs = next(node["inputs"] for node in prompt.values() if node["class_type"] == CONCEPT)
    assert (inputs["synonyms"], inputs["irrelevant"]) == ("auto\nwagon", "teapot, spoon, kite")
    saved = page.evaluate(f"(type) => {NODE}.serialize().widgets_values", CONCEPT)
    assert saved[:7] == ["car", "entity", "", "auto\nwagon", "teapot, spoon, kite", 0, 1]

    # The other renderer shows the same, and so does this one again.
    try:
        for to in (not vue, vue):
            page.evaluate("(vue) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", to)
            page.wait_for_function("(vue) => Boolean(document.querySelector('.lg-node-widgets')) === vue", arg=to)
            expect(page.get_by_label("synonyms", exact=True)).to_have_value("auto\nwagon")
            expect(page.get_by_label("synonyms", exact=True)).to_be_visible()
            expect(group(frontend, "means the same").first).to_be_visible()
    finally:
        page.evaluate("(vue) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", vue)


def test_a_preset_shows_its_words_before_the_run(frontend: Frontend) -> None:
    frontend.open()
    frontend.page.evaluate("app.graph.clear()")
    frontend.page.evaluate(ADD, [PRESET, 0, 0])
    for label in ("everyday / dog", "relations / kissing"):
        frontend.set(PRESET, "preset", label)
        presets = frontend.host.get("/erase_anything/v1/presets")["presets"]
        preset = next(each for each in presets if each["label"] == label)
        asked = {name: preset[name] for name in ("phrase", "kind", "template")}
        found = frontend.host.post("/erase_anything/v1/concept", asked)
        expect(group(frontend, "prompt")).to_have_text(found["remarks"]["prompt"])
        expect(group(frontend, "means the same")).to_have_text(found["synonyms"] or "none")
        expect(group(frontend, "unrelated")).to_have_text(found["irrelevant"])
    expect(frontend.page.locator(".ea-words")).not_to_contain_text("Connected")
    frontend.page.evaluate(ADD, ["EraseAnything_LoadFlux", -500, 0])
    frontend.page.evaluate(
        "app.graph.nodes.find(({ type }) => type.endsWith('LoadFlux')).connect(0, "
        "app.graph.nodes.find(({ type }) => type.endsWith('Preset')), 'flux')"
    )
    words = frontend.page.locator(".ea-words")
    expect(words).to_contain_text("Connected: flux.")

    # The run knows the model's own words, and they stay until something changes.
    frontend.set(PRESET, "preset", "everyday / dog")
    frontend.queue()
    expect(words).to_contain_text("a photo of a dog")
    expect(words).not_to_contain_text("Connected")
    frontend.set(PRESET, "word_seed", 1)
    expect(words).to_contain_text("Connected: flux.")


def contrast(text: Locator) -> float:
    """WCAG's contrast between an element's text and its own ground, both opaque (1 to 21)."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    style = text.evaluate("(e) => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]")
    assert all(colour.startswith("rgb(") for colour in style), style
    dark, light = sorted(luminance(colour) for colour in style)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_axe_finds_nothing_wrong_with_a_concept(
    request: pytest.FixtureRequest, browser: Browser, host: Host, palette: str
) -> None:
    host.post("/settings", {"Comfy.ColorPalette": palette})
    try:
        with new_frontend(request, browser, host, vue=True) as frontend:
            frontend.open("1_erase_and_compare")
            look_at(frontend, CONCEPT)
            for phrase, appears in (("gun", ".ea-left-out"), ("next to", ".ea-hint")):
                frontend.set(CONCEPT, "phrase", phrase)
                expect(frontend.page.locator(appears).first).to_be_visible()
                for shown in (".ea-concept", ".ea-box"):
                    found = Axe().run(frontend.page, context=shown)
                    assert not found.violations_count, found.generate_report()
                # axe leaves the colours of text on nodes undecided
                assert contrast(frontend.page.locator(".ea-word").last) >= 4.5
                if appears == ".ea-left-out":
                    assert contrast(frontend.page.locator(appears).first) >= 4.5
    finally:
        host.post("/settings", {"Comfy.ColorPalette": "dark"})


def test_wordnet_is_fetched_at_a_click_alone(
    request: pytest.FixtureRequest,
    browser: Browser,
    own_host: Host,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = Path(str(nltk.data.find("corpora/wordnet")))
    empty = tmp_path / "nltk_data"
    monkeypatch.setenv("NLTK_DATA", str(empty))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # nobody there: the server is offline
    with own_host as host, new_frontend(request, browser, host) as frontend:
        frontend.open("1_erase_and_compare")
        panel, button = frontend.page.locator(".ea-senses"), frontend.page.get_by_role("button", name="Fetch WordNet")
        words = frontend.page.locator(".ea-words")
        expect(words).to_have_text("")  # said once, in the list of meanings
        expect(panel).to_contain_text("WordNet's data are not installed")
        assert not empty.exists()
        button.click()
        expect(panel).to_contain_text("WordNet's data could not be fetched: check the internet connection")
        shutil.copytree(data, empty / "corpora" / "wordnet")
        button.click()
        expect(frontend.page.locator(".ea-sense")).to_have_count(3)
        expect(words).to_contain_text("automobile")


def test_new_nodes_begin_as_the_settings_say(frontend: Frontend) -> None:
    page = frontend.page
    frontend.open("1_erase_and_compare")
    value = """(type, name) => app.graph.nodes.filter((node) => node.type === type).at(-1)
        .widgets.find((widget) => widget.name === name).value"""
    add = """([type]) => app.graph.add(LiteGraph.createNode(type))"""
    read = f"([type, name]) => ({value})(type, name)"
    loaded = page.evaluate(read, ["EraseAnything_Train", "sample_every"])
    put = "([name, value]) => app.extensionManager.setting.set(`EraseAnything.${name}`, value)"
    settings = {"SampleEvery": 25, "EndpointUrl": "http://localhost:9/v1", "EndpointModel": "mine"}
    try:
        for name, wanted in settings.items():
            page.evaluate(
                "([id, value]) => app.extensionManager.setting.set(id, value)", [f"EraseAnything.{name}", wanted]
            )
        page.evaluate(add, ["EraseAnything_Train"])
        assert page.evaluate(read, ["EraseAnything_Train", "sample_every"]) == 25
        page.evaluate(add, ["EraseAnything_WordsEndpoint"])
        assert page.evaluate(read, ["EraseAnything_WordsEndpoint", "base_url"]) == settings["EndpointUrl"]
        assert page.evaluate(read, ["EraseAnything_WordsEndpoint", "model"]) == "mine"
        frontend.open("1_erase_and_compare")
        assert page.evaluate(read, ["EraseAnything_Train", "sample_every"]) == loaded != 25
    finally:
        for name in settings:
            page.evaluate(put, [name, ""])
