"""The presets: complete, valid, and such that a concept can be made of each."""

from __future__ import annotations

from collections import Counter

import pytest

from training.concepts import make_concept, presets
from training.concepts.concept import TEMPLATES


def test_thirty_everyday_concepts_of_three_kinds_and_some_artists():
    everyday = Counter(preset.kind for preset in presets() if preset.group == "everyday")
    assert everyday == {"entity": 10, "abstraction": 10, "relationship": 10}
    artists = [preset for preset in presets() if preset.group == "artists"]
    assert len(artists) >= 10 and {preset.kind for preset in artists} == {"abstraction"}
    groups = Counter(preset.group for preset in presets())
    assert set(groups) == {"everyday", "artists", "relations", "brands", "characters", "safety"}
    assert min(groups.values()) > 5
    assert all(preset.template == TEMPLATES[preset.kind] for preset in presets() if preset.group == "everyday")
    assert len({preset.phrase.lower() for preset in presets()}) == len(presets())


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.phrase)
def test_each_makes_a_concept(preset):
    made = make_concept(preset.phrase, preset.kind, preset.template, [], ["marble", "velvet", "fog"], preserve=["fog"])
    assert made.phrase in preset.to_dict()["phrase"] and made.phrase in made.prompt()
