"""What the nodes' panels do: advanced settings come and go, meanings are chosen and WordNet is fetched by a click."""

from __future__ import annotations

import shutil
from pathlib import Path

import nltk
import pytest
from playwright.sync_api import Browser, expect

from scripts.host import Host

from .conftest import Frontend, new_frontend

TRAIN = "EraseAnything_Train"
CONCEPT = "EraseAnything_Concept"
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
    page.locator(".ea-more").click()
    expect(page.locator(".ea-more")).to_have_count(0)
    assert senses.count() > 3 and chosen.count() == 1

    # The number was one of that word's meanings; a name that WordNet lacks has none.
    frontend.set(CONCEPT, "phrase", "Pikachu")
    expect(page.locator(".ea-senses")).to_have_text("WordNet does not know “Pikachu”: it gets no synonyms but yours.")
    assert value(frontend, CONCEPT, "sense") == 1


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
        expect(panel).to_contain_text("WordNet's data are not installed")
        assert not empty.exists()
        button.click()
        expect(panel).to_contain_text("WordNet's data could not be fetched: check the internet connection")
        shutil.copytree(data, empty / "corpora" / "wordnet")
        button.click()
        expect(frontend.page.locator(".ea-sense")).to_have_count(3)


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
