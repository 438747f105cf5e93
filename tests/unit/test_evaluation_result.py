"""evaluation.json: what version 1 called otherwise is read as of this version, and tallies are counted as they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.reports import make_evaluation
from training.errors import ErasureError
from training.evaluation.judges.base import Verdict
from training.evaluation.result import VERSION, read_evaluation, upgraded
from training.evaluation.tally import Tally

EARLIER = Path(__file__).parents[1] / "data" / "version_1" / "evaluation"
NAMES = {"concept": "acc_e", "synonyms": "acc_g", "preserved unseen": "acc_ir", "preserved seen": "acc_ir_seen"}


def test_an_evaluation_of_version_1_has_the_suites_of_this_version_and_its_own_figures() -> None:
    old = json.loads((EARLIER / "evaluation.json").read_text(encoding="utf-8"))
    new = read_evaluation(EARLIER)
    assert (old["version"], new["version"]) == (1, VERSION)
    assert [suite["id"] for suite in new["suites"]] == [NAMES.get(suite["id"], suite["id"]) for suite in old["suites"]]
    assert "acc_e" in {suite["id"] for suite in new["suites"]}
    assert [suite["results"] for suite in new["suites"]] == [suite["results"] for suite in old["suites"]]
    roles = {suite["id"]: suite["role"] for suite in new["suites"]}
    assert roles["acc_e"] == "erase" and roles.get("acc_g", "generalise") == "generalise"
    assert {suite["role"] for suite in new["suites"] if suite["group"] == "attack"} <= {"attack"}
    named = {id for row in new["pictures"] for id in row["suites"]}
    assert named == {suite["id"] for suite in new["suites"]}
    assert len(new["pictures"]) == len(old["pictures"]) and not named & set(NAMES)


def test_an_evaluation_of_this_version_is_read_as_it_is(tmp_path: Path) -> None:
    made = make_evaluation(tmp_path)
    assert upgraded(made) is made
    for wrong in ({**made, "version": VERSION + 1}, {**made, "format": "something else"}, [], None):
        with pytest.raises(ErasureError, match="no evaluation of version 1 to 2"):
            upgraded(wrong)
    with pytest.raises(ErasureError, match="damaged"):
        upgraded({**made, "version": 1, "suites": [{"title": "no id"}]})


def test_pictures_that_cannot_be_judged_count_nowhere() -> None:
    tally = Tally.of([Verdict(True, "car"), Verdict(False, "owl"), Verdict(False, "", "broken"), Verdict(True, "car")])
    assert (tally.hits, tally.images, tally.failed, tally.share) == (2, 3, 1, 0.6667)
    assert tally.to_dict() == {"hits": 2, "images": 3, "share": 0.6667, "interval": [0.2077, 0.9385], "failed": 1}
    assert Tally.of([Verdict(False, "", "broken")]).to_dict() == {
        "hits": 0,
        "images": 0,
        "share": None,
        "interval": [0.0, 1.0],
        "failed": 1,
    }
