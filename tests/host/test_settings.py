"""Settings of a training at a real server: the Train node and HTTP have the ranges that training/settings declares."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from scripts.host import Host
from training.errors import ConfigError
from training.settings import SETTINGS, ErasureConfig
from training.settings.field import Setting

MEMORY = "/erase_anything/v1/memory"
CONCEPT = {"phrase": "umbrella", "synonyms": [], "irrelevant": ["house", "tree", "apple"]}
LARGEST_INT = 2**53 - 1  # that a browser can hold

# Values of a workflow's widgets stand in this order, saved ones too: nothing may move.
POSITIONS = [
    "method",
    "steps",
    "rank",
    "targets",
    "eta",
    "erase_prompts",
    "random_strength",
    "sample_every",
    "seed",
    "preserve_prompts",
    "bilevel",
    "anchor",
    "alpha",
    "blocks",
    "capture_blocks",
    "lr_erase",
    "lr_preserve",
    "weight_decay",
    "weight_esd",
    "weight_attn",
    "weight_lora",
    "weight_rsc",
    "tau",
    "batch_erase",
    "batch_preserve",
    "erase_synonyms",
    "shuffle",
    "sampling_steps",
    "resolution",
    "t_min",
    "refresh_every",
    "guidance",
    "checkpoint_every",
    "keep_checkpoints",
    "sample_count",
    "erase_to",
    "gradient_checkpointing",
    "stream_blocks",
    "early_stopping",
    "compile",
]


@pytest.fixture(scope="module")
def widgets(host: Host) -> dict[str, list[Any]]:
    """The Train node's widgets for settings, by the setting's name."""
    inputs = host.get("/object_info/EraseAnything_Train")["EraseAnything_Train"]["input"]
    known = {**inputs["required"], **inputs["optional"]}
    return {
        name.removeprefix("training_"): spec for name, spec in known.items() if name not in ("flux", "concept", "name")
    }


def test_widgets_stand_where_saved_workflows_expect_them(widgets: dict[str, list[Any]]) -> None:
    assert list(widgets) == POSITIONS and set(POSITIONS) == set(SETTINGS)


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_widget_has_its_settings_range(widgets: dict[str, list[Any]], name: str) -> None:
    setting, (kind, options) = SETTINGS[name], widgets[name]
    if setting.several or setting.type in (bool, str):
        assert (
            (options.get("options") or ()) == list(setting.choices)
            if setting.choices
            else kind in ("STRING", "BOOLEAN")
        )
    else:
        assert (options["min"], options["max"]) == (setting.low, min(setting.high, LARGEST_INT))


def wrong_values(setting: Setting) -> list[Any]:
    """Values of the right type out of range, and some of wrong types."""
    wrong: list[Any] = [None, {}, [[1]]]
    if setting.type in (int, float):
        wrong += [setting.low - 1, math.floor(setting.high) + 1, "7", True]
        wrong = [[value] for value in wrong] if setting.several else wrong
    return [*wrong, "none of these"] if setting.choices else wrong


@pytest.mark.parametrize("name", list(SETTINGS))
def test_http_refuses_with_the_settings_own_sentence(host: Host, name: str) -> None:
    for value in wrong_values(SETTINGS[name]):
        status, answer = host.request("POST", MEMORY, {"concept": CONCEPT, "config": {name: value}})
        with pytest.raises(ConfigError) as caught:
            ErasureConfig.from_dict(json.loads(json.dumps({name: value})))
        assert (status, json.loads(answer)["error"]) == (400, str(caught.value)), value


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if math.isfinite(setting.low)])
def test_http_takes_the_ends_of_a_range(host: Host, name: str) -> None:
    setting = SETTINGS[name]
    for end in (setting.low, setting.high):
        value = [int(end)] if setting.several else setting.type(end)
        status, answer = host.request("POST", MEMORY, {"concept": CONCEPT, "config": {name: value}})
        assert status == 200, (value, answer)
