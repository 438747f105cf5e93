"""The Concept nodes, the Words Endpoint and all settings of the Train node in a real server: good and bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from scripts.host import Host, HostError
from tests.support.chat_server import GOOD, KEY, chat_server
from training.concepts import make_concept, presets
from training.concepts.endpoint import API_HOST, API_KEY
from training.settings import SETTINGS, ErasureConfig

ROOT = Path(__file__).parents[2]
Graph = dict[str, dict[str, Any]]
BY_HAND = {"kind": "entity", "template": "", "synonyms": "-", "irrelevant": "house, tree, apple", "word_seed": 0}
AUTOMATIC = {**BY_HAND, "synonyms": "", "irrelevant": ""}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": f"EraseAnything_{class_type}", "inputs": inputs}


def load_flux() -> dict[str, Any]:
    files = dict.fromkeys(("transformer", "clip_l", "t5", "vae"), "none")
    return node("LoadFlux", model="demo (flux-emoji)", precision="fp32", **files)


def concepts(host: Host, graph: Graph) -> dict[str, dict[str, Any]]:
    """The concepts that the nodes of a graph show, by the nodes' names."""
    outputs = host.run(graph)["outputs"]
    return {name: shown["concept"][0] for name, shown in outputs.items() if "concept" in shown}


def own_nodes(host: Host) -> dict[str, dict[str, Any]]:
    return {name: info for name, info in host.get("/object_info").items() if name.startswith("EraseAnything_")}


# --- what the nodes say of themselves ------------------------------------------------------------------------------


def test_every_node_and_input_is_explained_in_both_languages(host: Host) -> None:
    chinese = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    known = own_nodes(host)
    assert set(chinese) == set(known)
    for name, info in known.items():
        inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
        assert set(chinese[name]["inputs"]) == set(inputs), name
        assert len(chinese[name].get("outputs", {})) == len(info["output"]), name
        page = (ROOT / "web" / "docs" / name / "en.md").read_text(encoding="utf-8")
        assert not [input_id for input_id in inputs if f"**{input_id}**" not in page and name != "EraseAnything_Wait"
                    and not (input_id in ("flux", "model", "job") and len(inputs) < 5)], name  # fmt: skip
    texts = [json.loads((ROOT / "locales" / lang / "main.json").read_text(encoding="utf-8")) for lang in ("en", "zh")]
    assert set(texts[0]["eraseAnything"]) == set(texts[1]["eraseAnything"])


def test_the_train_node_has_every_setting(host: Host) -> None:
    inputs = own_nodes(host)["EraseAnything_Train"]["input"]
    simple, rest = inputs["required"], inputs["optional"]
    # What was there first stays where it was, because workflows hold values by position.
    assert list(simple) == [
        "flux", "concept", "name", "method", "steps", "rank", "targets", "eta", "erase_prompts", "random_strength",
        "sample_every", "training_seed", "preserve_prompts",
    ]  # fmt: skip
    assert all(spec[1]["advanced"] for spec in rest.values()) and not any("advanced" in s[1] for s in simple.values())
    shown = {("seed" if name == "training_seed" else name): spec[1] for name, spec in {**simple, **rest}.items()}
    for setting in SETTINGS.values():
        spec, default = shown[setting.name], setting.default
        assert spec["default"] == ("" if default == () else default)
        assert spec["tooltip"] == setting.help
        if isinstance(default, float):  # the frontend's rule: as many decimals as the step has
            decimals = max(0, -math.floor(math.log10(spec["step"])))
            assert round(default, decimals) == default
            assert not default or decimals >= 2 - math.floor(math.log10(abs(default)))  # and room for finer values


# --- settings ------------------------------------------------------------------------------------------------------


def test_advanced_settings_reach_the_job_and_may_be_left_out(host: Host, erase_graph: Any) -> None:
    advanced = {"lr_erase": 3e-4, "bilevel": False, "blocks": " 1, 0-1", "capture_blocks": "0", "refresh_every": 1}
    for name, given in (("advanced", advanced), ("plain", {})):
        job = host.run(erase_graph("car", f"settings-{name}", wait=name == "advanced", steps=2, **given))["outputs"]
        folder = host.base / "user" / "__erase_anything" / "jobs" / job["train"]["job"][0]
        config = json.loads((folder / "job.json").read_text(encoding="utf-8"))["request"]["config"]
        want = {**given, "blocks": [0, 1], "capture_blocks": [0]} if given else {}
        default = ErasureConfig().to_dict()
        assert {k: config[k] for k in advanced} == {**{k: default[k] for k in advanced}, **want}


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("blocks", "0; 1", 'The setting blocks must be block numbers like "0, 2, 5-8", or empty'),
        ("capture_blocks", "8-5", 'The setting capture_blocks must be block numbers like "0, 2, 5-8"'),
        ("blocks", "0-9999", "The setting blocks must lie between 0 and 1000"),
    ],
)
def test_bad_block_numbers(host: Host, erase_graph: Any, setting: str, value: str, sentence: str) -> None:
    assert sentence in refusal(host, erase_graph("car", "bad-blocks", **{setting: value}))


# --- concepts ------------------------------------------------------------------------------------------------------


def test_a_sense_can_be_chosen_and_is_the_first_without(host: Host) -> None:
    graph = {name: node("Concept", phrase="crane", **AUTOMATIC) for name in ("old", "1", "2")}
    for name in ("1", "2"):
        graph[name]["inputs"]["sense"] = int(name)
    found = concepts(host, graph)
    assert found["old"] == found["1"] == json.loads(json.dumps(make_concept("crane").to_dict()))
    assert found["2"] == json.loads(json.dumps(make_concept("crane", sense=2).to_dict()))
    assert found["1"] != found["2"]
    assert "senses" in refusal(host, {"c": node("Concept", phrase="crane", sense=99, **AUTOMATIC)})


def test_every_preset_makes_a_concept(host: Host) -> None:
    labels = own_nodes(host)["EraseAnything_Preset"]["input"]["required"]["preset"][1]["options"]
    assert len(labels) == len(set(labels)) == len(presets())
    found = concepts(host, {label: node("Preset", preset=label, word_seed=0) for label in labels})
    for label, preset in zip(labels, presets(), strict=True):
        assert label == f"{preset.group} / {found[label]['phrase']}"
        assert found[label]["kind"] == preset.kind and found[label]["irrelevant"] and found[label]["preserve"]
    assert "no preset" in refusal(host, {"p": node("Preset", preset="everyday / nothing", word_seed=0)})


def test_what_may_be_wrong_with_words_is_shown_beside_them(host: Host) -> None:
    graph = {
        "gun": node("Concept", phrase="gun", **AUTOMATIC),
        "relation": node("Concept", phrase="next to", **AUTOMATIC),
        "preset": node("Preset", preset="everyday / dog", word_seed=0),
    }
    shown = host.run(graph)["outputs"]
    [gun], [relation], [preset] = (shown[name]["remarks"] for name in graph)
    assert {"word": "pistol", "reason": "narrower"} in gun["left_out"] and gun["hints"] == []
    assert "choose the kind relationship" in relation["hints"][0]
    assert relation["hints"][0] in shown["relation"]["text"][0]  # for clients that show text alone
    assert preset == {"prompt": "a photo of a dog", "left_out": [], "hints": []}


def refusal(host: Host, graph: Graph) -> str:
    """The sentence with which a graph fails; no job and no file is left of it."""

    def left() -> list[str]:
        files = [host.base / "models" / "loras", host.base / "user" / "__erase_anything" / "jobs"]
        return [str(path) for folder in files if folder.exists() for path in sorted(folder.iterdir())]

    before = left()
    with pytest.raises(HostError) as caught:
        host.run(graph)
    sentence = str(caught.value)
    assert "Traceback" not in sentence and "\n" not in sentence and str(host.base) not in sentence
    assert left() == before
    return sentence


@pytest.mark.parametrize("read", [False, True], ids=["without model", "with model"])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"phrase": " | "}, "The concept is empty: write the word or phrase to erase."),
        ({"template": "many {}s", "kind": "custom"}, "does not contain the concept"),
        ({"phrase": "word " * 40}, "The concept has more than 12 words: name it in a short phrase."),
        ({"phrase": "…!?"}, "has no letter in it"),
        ({"synonyms": "wagon, " + "word " * 40}, "has more than 12 words: shorten it."),
    ],
)
def test_bad_concepts(host: Host, changes: dict[str, str], sentence: str, read: bool) -> None:
    graph = {"flux": load_flux(), "concept": node("Concept", **{"phrase": "car", **BY_HAND, **changes})}
    if read:
        graph["concept"]["inputs"]["flux"] = ["flux", 0]
    assert sentence in refusal(host, graph)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"phrase": "猫"}, 'text encoder does not know "猫": choose words it was trained on.'),
        ({"phrase": "кошка"}, 'text encoder does not know "кошка"'),
        ({"phrase": "☃a☃", "kind": "custom"}, None),  # one letter of it is known
        ({"template": "a " * 40 + "{}", "kind": "custom"}, "beyond the 32 tokens the text encoder reads"),
    ],
)
def test_what_the_model_cannot_read(host: Host, erase_graph: Any, changes: dict[str, str], sentence: str) -> None:
    """Refused by the Concept node that knows the model, else by the Train node before there is a job."""
    known = {"flux": load_flux(), "concept": node("Concept", **{"phrase": "car", **BY_HAND, **changes})}
    known["concept"]["inputs"]["flux"] = ["flux", 0]
    if sentence is None:
        assert concepts(host, known)["concept"]["phrase"] == changes["phrase"]
        return
    assert sentence in refusal(host, known)
    graph = erase_graph("car", "unreadable", wait=False)
    graph["concept"]["inputs"].update(changes)
    assert sentence in refusal(host, graph)


# --- words from an endpoint ----------------------------------------------------------------------------------------


def test_an_endpoint_chooses_words_and_its_key_is_in_no_file(
    own_host: Host, erase_graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(API_KEY, KEY)
    monkeypatch.setenv(API_HOST, "127.0.0.1")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with chat_server() as server, own_host as host:
        graph = erase_graph("car", "by-endpoint", wait=False, steps=2)
        graph["endpoint"] = node("WordsEndpoint", base_url=server.url, model="tiny", each=1, timeout=30.0)
        graph["concept"]["inputs"].update(AUTOMATIC, endpoint=["endpoint", 0])
        history = host.run(graph)
        concept = history["outputs"]["concept"]["concept"][0]
        assert concept["synonyms"] == GOOD["synonyms"]
        assert concept["irrelevant"] == [*GOOD["no_relation"], *GOOD["far"], *GOOD["mid"]]
        [(_, headers, _)] = server.requests
        assert headers["Authorization"] == f"Bearer {KEY}"
        [kept] = (host.base / "user" / "__erase_anything" / "words").iterdir()
        assert json.loads(kept.read_text(encoding="utf-8"))["words"] == GOOD

        # Another seed runs the node again, with the words that are kept; words by hand stay.
        graph["concept"]["inputs"].update(word_seed=1, irrelevant="cloud")
        again = concepts(host, {name: graph[name] for name in ("concept", "endpoint")})
        assert again["concept"]["synonyms"] == GOOD["synonyms"] and again["concept"]["irrelevant"] == ["cloud"]
        assert len(server.requests) == 1

        # A model that answers nonsense is one sentence that tells nothing of the key.
        server.content = json.dumps({**GOOD, "far": [KEY]})
        graph["concept"]["inputs"]["phrase"] = "train"
        sentence = refusal(host, {name: graph[name] for name in ("concept", "endpoint")})
        assert "repeats the API key" in sentence and KEY not in sentence
        host.post(f"/erase_anything/v1/jobs/{history['outputs']['train']['job'][0]}/cancel", {})
    files = [path for path in own_host.base.rglob("*") if path.is_file() and not path.is_relative_to(ROOT)]
    assert len(files) > 10 and any(path.name == "job.json" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
