"""Training settings and requests: ranges, round trips, names that are no paths."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from training.concepts import Concept
from training.config import BLOCKS, TARGETS, ErasureConfig, ErasureRequest, target_blocks, validate_name
from training.errors import ConfigError, ErasureError
from training.models.source import FluxSource


def test_defaults_are_valid_documented_and_round_trip():
    config = ErasureConfig()
    config.validate()
    assert ErasureConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert ErasureConfig.from_dict({}) == config
    for field in dataclasses.fields(ErasureConfig):
        assert len(field.metadata["help"]) > 10 and field.metadata["help"].endswith(".")


def test_a_part_keeps_the_other_defaults():
    config = ErasureConfig.from_dict({"steps": 7, "blocks": [0, 2]})
    assert (config.steps, config.blocks, config.rank) == (7, (0, 2), ErasureConfig().rank)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"steps": 2.5},
        {"steps": True},
        {"steps": "7"},
        {"lr_erase": -1e-3},
        {"lr_erase": math.nan},
        {"lr_erase": math.inf},
        {"method": "magic"},
        {"anchor": 3},
        {"bilevel": 1},
        {"refresh_every": -1},
        {"targets": "attn.to_q"},
        {"blocks": [-1]},
        {"blocks": ["0"]},
        {"shuffle": 1},
        {"seed": -1},
        {"t_min": 1.0},
        {"colour": 3},
        {"gradient_checkpointing": True},
        {"stream_blocks": 1},
        {"stream_blocks": 2, "gradient_checkpointing": "off"},
    ],
)
def test_what_is_out_of_range_is_refused(changes: dict):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        ErasureConfig.from_dict(changes)


@pytest.mark.parametrize("changes", [{"steps": []}, {"steps": [5]}, {"eta": [1.0]}, {"blocks": 3}, {"blocks": [[1]]}])
def test_lists_and_single_values_are_told_apart(changes: dict):
    with pytest.raises(ConfigError, match=r"must be (a list|one value, no list|of type int)"):
        ErasureConfig.from_dict(changes)


@pytest.mark.parametrize("name", ["car", "erase-car v1.2 (final)", "猫", "a" * 100])
def test_names(name: str):
    assert validate_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../car",
        "a/b",
        "a\\b",
        "/car",
        "C:car",
        "car.",
        "car ",
        " car",
        ".car",
        "a" * 101,
        "CON",
        "nul.x",
        "a\nb",
        "a\0b",
        "car*",
    ],
)
def test_names_with_path_parts_are_refused(name: str):
    with pytest.raises(ConfigError):
        validate_name(name)


@pytest.mark.parametrize("precision", ["fp8", "int8", "nf4"])
def test_quantised_weights_are_not_compiled(demo_folder: Path, precision: str):
    compiled = ErasureConfig(compile=True)
    source = FluxSource("diffusers", folder=str(demo_folder))
    request(source=source, config=compiled).validate()
    with pytest.raises(ConfigError, match=f"compile does not work with {precision} weights"):
        request(source=dataclasses.replace(source, precision=precision), config=compiled).validate()


def request(**changes) -> ErasureRequest:
    concept = Concept("car", irrelevant=("dog",), preserve=("a dog",))
    made = ErasureRequest(FluxSource("diffusers", folder="/nowhere"), concept, ErasureConfig(steps=3), "car", "/tmp")
    return dataclasses.replace(made, **changes)


def test_requests_round_trip_through_json():
    assert ErasureRequest.from_dict(json.loads(json.dumps(request().to_dict()))) == request()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../car"}, "cannot be a LoRA's name"),
        ({"output_folder": "loras"}, "absolute"),
        ({"device": "gpu"}, "Unknown device"),
        ({"concept": Concept("")}, "empty"),
        ({"config": ErasureConfig(rank=0)}, "rank"),
        ({}, "nowhere|folder|model"),
    ],
)
def test_requests_are_validated_whole(changes: dict, message: str):
    with pytest.raises(ErasureError, match=message):
        request(**changes).validate()


@pytest.mark.parametrize("missing", ["source", "concept", "config", "name", "output_folder"])
def test_incomplete_requests(missing: str):
    data = request().to_dict()
    del data[missing]
    with pytest.raises(ErasureError):
        ErasureRequest.from_dict(data)


@pytest.mark.parametrize(
    ("targets", "chosen", "blocks"),
    [
        ("text_qk", (), [0, 1, 2]),
        ("both_qk", (), [0, 1, 2]),
        ("single_qk", (), [3, 4]),
        ("every_qk", (), [0, 1, 2, 3, 4]),
        ("every_qk", (4, 1), [1, 4]),
        ("single_qk", (1, 4), [4]),
        ("text_qk", (3,), []),
        ("single_qk", (5,), []),
    ],
)
def test_target_sets_reach_double_or_single_blocks(targets: str, chosen: tuple[int, ...], blocks: list[int]):
    assert target_blocks(targets, chosen, double=3, single=2) == blocks


def test_target_sets_name_projections_once():
    for names in TARGETS.values():
        assert len(set(names)) == len(names) and all(name.startswith("attn.") for name in names)
    assert set(BLOCKS) <= set(TARGETS)


@pytest.mark.parametrize(
    ("kind", "targets", "eta", "erase_to", "batches"),
    [
        ("entity", "text_qk", 0.5, "empty", (1, 1)),
        ("custom", "text_qk", 0.5, "empty", (1, 1)),
        ("abstraction", "all", 3.0, "rest", (4, 4)),
        ("relationship", "all", 0.0, "rest", (4, 4)),
    ],
)
def test_what_is_left_to_the_kind(kind: str, targets: str, eta: float, erase_to: str, batches: tuple[int, int]):
    config = ErasureConfig(steps=7).for_kind(kind)
    erase, preserve = batches
    assert (
        config
        == config.for_kind("entity")
        == ErasureConfig(
            steps=7, targets=targets, eta=eta, erase_to=erase_to, batch_erase=erase, batch_preserve=preserve
        )
    )
    config.validate()
    for other in ("esd", "gem", "concept_ablation"):
        assert ErasureConfig(method=other).for_kind(kind).eta == 1.0
    own = ErasureConfig(targets="text_kv", eta=0.75, erase_to="empty", batch_erase=3, batch_preserve=5)
    assert own.for_kind(kind) == own
