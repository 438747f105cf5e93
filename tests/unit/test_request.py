"""Training requests: round trips, what is refused, names that are no paths, digests that earlier versions stored."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from training.checkpoint import bank_request_digest, request_digest
from training.concepts import Concept
from training.errors import ConfigError, ErasureError
from training.lora.names import validate_name
from training.models.source import FluxSource
from training.models.variants import variant_of
from training.request import ErasureRequest
from training.resolve import resolve
from training.settings import ErasureConfig


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
        ({"config": ErasureConfig(stream_blocks=2, gradient_checkpointing="off")}, "stream_blocks needs"),
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


# Of version 0.1.0: its checkpoints and banks hold them, and go on only where they are the same. Whole numbers come from
# the browser without a point, and are other text than with one.
@pytest.mark.parametrize(
    ("settings", "course", "bank"),
    [
        ({}, "88d772eafe4680c1c068e9f7b3598f3d", "fc2fc4f67b7b8c51b06b658bab24a57a"),
        (
            {"steps": 7, "eta": 1, "blocks": [0, 2], "lr_erase": 0.001, "compile": True, "t_min": 0},
            "0f1ff5992a6b97a51de762bef5075d1a",
            "c4b972fc108156b1b2bcd4ae93ee6884",
        ),
    ],
)
def test_digests_are_those_of_earlier_versions(settings: dict, course: str, bank: str):
    asked = request(config=ErasureConfig.from_dict(json.loads(json.dumps(settings))))
    assert (request_digest(asked), bank_request_digest(asked)) == (course, bank)


def test_a_request_is_resolved_once(demo_folder: Path, tmp_path: Path):
    source = FluxSource("diffusers", folder=str(demo_folder))
    style = Concept("twemoji", "abstraction", "a {subject} in the style of {}", irrelevant=("noto",))
    asked = request(source=source, concept=style, device="cpu")
    resolved = resolve(asked, tmp_path)
    assert resolved.config == asked.config.for_kind("abstraction") != asked.config
    assert resolved.variant == variant_of(source)
    assert resolved.request == asked and request_digest(resolved.request) == request_digest(asked)
    with pytest.raises(ErasureError, match="output folder"):
        resolve(dataclasses.replace(asked, output_folder="loras"), tmp_path)
