"""Merging against dense float64: every mode's ΔW, ranks, reports, provenance and refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.loras import HIDDEN, dense, random_lora, relative_error, weighted
from training.errors import ConfigError, LoraError
from training.lora.files import KEY_MERGE, convert, describe, merge_files, numbered
from training.lora.format import KEY_BASE, KEY_CONCEPT, KEY_METHOD, read_lora, write_lora
from training.lora.inputs import ConceptInputs, input_site, inputs_path, low_rank_factor, read_inputs, write_inputs
from training.lora.merge import PRESERVE, RIDGE, Source, merge

EXACT = 1e-6
# ranks 4 + 16, different alphas, bf16 and fp32, targets that overlap in part, weights of either sign
LORAS = [
    random_lora(0, rank=4, alpha=2.0),
    random_lora(1, rank=16, alpha=16.0, dtype=torch.bfloat16),
    random_lora(2, rank=3, alpha=7.5, targets=("attn.add_k_proj", "attn.to_q"), single=("attn.to_q", "attn.to_k")),
]
WEIGHTS = [1.0, 0.7, -0.4]


def sources(loras=LORAS, weights=WEIGHTS, inputs=None) -> list[Source]:
    return [
        Source(f"lora-{i}", lora, weight, inputs[i] if inputs else None)
        for i, (lora, weight) in enumerate(zip(loras, weights, strict=True))
    ]


@pytest.mark.parametrize(("mode", "scale"), [("sum", 1.0), ("concat", 1.0), ("normalised", 1 / 1.3), ("fusion", 1.0)])
def test_exact_modes_are_the_dense_sum(mode: str, scale: float) -> None:
    """Fusion too, since these LoRAs have no concept inputs."""
    merged = merge(sources(), mode)
    expected = {name: scale * change for name, change in weighted(LORAS, WEIGHTS).items()}
    assert relative_error(dense(merged.weights), expected) < EXACT
    assert merged.report["relative_error"] < EXACT
    assert all(a.dtype == torch.float32 and alpha == len(a) for a, _, alpha in merged.weights.values())


def test_order_of_keys_and_of_sources_does_not_matter() -> None:
    shuffled = [dict(reversed(lora.items())) for lora in LORAS]
    for mode in ("sum", "concat"):
        first, second = merge(sources(), mode).weights, merge(sources(shuffled), mode).weights
        assert list(first) == list(second)
        assert all(torch.equal(first[n][0], second[n][0]) and torch.equal(first[n][1], second[n][1]) for n in first)
        turned = merge(sources(LORAS[::-1], WEIGHTS[::-1]), mode).weights
        assert relative_error(dense(turned), dense(first)) < EXACT


def test_disjoint_targets_stay_apart() -> None:
    text, image = random_lora(3), random_lora(4, rank=2, targets=("attn.to_k",))
    merged = merge(sources([text, image], [1.0, 2.0]), "sum").weights
    assert merged.keys() == text.keys() | image.keys()
    assert {len(a) for n, (a, _, _) in merged.items() if n in image} == {2}
    assert relative_error(dense(merged), weighted([text, image], [1.0, 2.0])) < EXACT


def test_weight_zero_leaves_a_lora_out() -> None:
    merged = merge(sources(weights=[1.0, 0.0, 0.0]), "sum")
    assert relative_error(dense(merged.weights), dense(LORAS[0])) < EXACT
    assert merged.weights.keys() == LORAS[0].keys()
    assert [row["share"] for row in merged.report["sources"]] == [1.0, 0.0, 0.0]
    negative = merge(sources(LORAS[:1], [-2.0]), "concat").weights
    assert relative_error(dense(negative), weighted(LORAS[:1], [-2.0])) < EXACT


@pytest.mark.parametrize("mode", ["sum", "concat", "normalised", "fusion"])
def test_rank_is_that_of_the_change(mode: str) -> None:
    """The same LoRA ten times, once with its ranks in another order, has the rank it had once."""
    lora = LORAS[0]
    turned = {name: (a.flip(0), b.flip(1), alpha) for name, (a, b, alpha) in lora.items()}
    merged = merge(sources([lora] * 9 + [turned], [0.1] * 10), mode)
    assert merged.report["rank"] == 4
    scale = 1.0
    assert relative_error(dense(merged.weights), {n: scale * c for n, c in dense(lora).items()}) < EXACT
    # more ranks than the layer is wide
    wide = merge(sources([random_lora(i, rank=16) for i in range(5)], [1.0] * 5), mode)
    assert wide.report["rank"] == HIDDEN


def test_concat_keeps_the_matrices_as_they_are() -> None:
    merged = merge(sources(LORAS[:2], [1.0, 0.5]), "concat").weights
    for name, (a, b, alpha) in merged.items():
        (a1, b1, _), (a2, b2, _) = LORAS[0][name], LORAS[1][name]
        assert torch.equal(a, torch.cat([a1, a2])) and alpha == 20
        assert torch.equal(b, torch.cat([b1 * 0.5, b2 * 0.5], 1))


@pytest.mark.parametrize("rank", [1, 5, 12, 40])
def test_svd_to_a_rank_is_the_best_of_that_rank(rank: int) -> None:
    """Eckart and Young: the error is what the singular values beyond the rank leave, in every layer."""
    merged = merge(sources(), "svd", rank=rank)
    found, expected = dense(merged.weights), weighted(LORAS, WEIGHTS)
    for name, change in expected.items():
        left = torch.linalg.svdvals(change)[rank:].norm()
        assert float((found[name] - change).norm()) == pytest.approx(float(left), rel=1e-5, abs=1e-5)
        assert len(merged.weights[name][0]) <= rank
    assert merged.report["relative_error"] == pytest.approx(relative_error(found, expected), rel=1e-4, abs=EXACT)


@pytest.mark.parametrize("error", [0.02, 0.3, 0.8])
def test_svd_to_an_error_has_the_fewest_ranks(error: float) -> None:
    merged = merge(sources(), "svd", error=error)
    expected = weighted(LORAS, WEIGHTS)
    assert relative_error(dense(merged.weights), expected) <= error * (1 + 1e-5)
    values = torch.cat([torch.linalg.svdvals(change) for change in expected.values()]).square().sort().values
    dropped = int((values.cumsum(0) <= error**2 * values.sum()).sum())
    positive = int((values > 1e-12 * values[-1]).sum())
    dropped -= len(values) - positive
    assert sum(len(a) for a, _, _ in merged.weights.values()) == positive - dropped
    assert merged.report["relative_error"] == pytest.approx(relative_error(dense(merged.weights), expected), rel=1e-4)


# ---- fusion


def random_inputs(lora, seed: int, columns: int = 6, keep: int = 8, hidden: int = HIDDEN) -> ConceptInputs:
    generator = torch.Generator().manual_seed(seed)
    places = {input_site(name) for name in sorted(lora)}
    return ConceptInputs(
        {place: torch.randn(columns, hidden, generator=generator) for place in sorted(places)},
        {place: torch.randn(keep, hidden, generator=generator) for place in sorted(places)},
    )


@pytest.mark.parametrize("columns", [2, 6, 24])  # fewer stored directions than the layer has inputs, and more
def test_fusion_solves_its_least_squares(columns: int) -> None:
    """argmin Σ ‖(ΔW − w_i ΔW_i) F_iᵀ‖² + λ ‖ΔW F_keepᵀ‖² + ridge ‖ΔW‖², solved by lstsq on dense matrices."""
    loras = [random_lora(i, rank=3 + i, alpha=5.0) for i in range(3)]
    inputs = [random_inputs(lora, 10 + i, columns) for i, lora in enumerate(loras)]
    merged = merge(sources(loras, [1.0, 0.5, -2.0], inputs), "fusion", preserve=0.3)
    expected = {}
    changes = [dense(lora) for lora in loras]
    for name in loras[0]:
        site = input_site(name)
        factors = [each.concept[site].double() for each in inputs]
        keep = torch.cat([each.keep[site].double() for each in inputs]) * 0.3**0.5
        every = torch.cat([*factors, keep])
        ridge = (RIDGE * every.square().sum() / HIDDEN) ** 0.5 * torch.eye(HIDDEN, dtype=torch.float64)
        wanted = [w * f @ c[name].T for w, f, c in zip([1.0, 0.5, -2.0], factors, changes, strict=True)]
        right = torch.cat([*wanted, torch.zeros(len(keep) + HIDDEN, HIDDEN, dtype=torch.float64)])
        expected[name] = torch.linalg.lstsq(torch.cat([every, ridge]), right, driver="gelsd").solution.T
    assert relative_error(dense(merged.weights), expected) < EXACT
    assert merged.report["notes"] == []


def test_fusion_dilutes_nothing_where_concepts_are_apart() -> None:
    """Concepts on orthogonal inputs: each keeps its whole change, preserved inputs see none; the sum does neither."""
    basis = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(0)))[0].T
    loras = [random_lora(i) for i in range(5)]
    inputs = []
    for i, lora in enumerate(loras):
        places = {input_site(name) for name in lora}
        concept, keep = basis[4 * i : 4 * i + 4], basis[20:28]
        inputs.append(ConceptInputs(dict.fromkeys(places, concept), dict.fromkeys(places, keep)))
    fused = merge(sources(loras, [1.0] * 5, inputs), "fusion", ridge=1e-5)
    for name, change in dense(fused.weights).items():
        for lora, each in zip(loras, inputs, strict=True):
            factor = each.concept[input_site(name)].double()
            own = dense(lora)[name]
            assert float(((change - own) @ factor.T).norm() / (own @ factor.T).norm()) < 1e-3
            keep = each.keep[input_site(name)].double()
            assert float((change @ keep.T).norm() / (own @ keep.T).norm()) < 1e-3
    for row in fused.report["sources"]:
        assert row["basis"] == "inputs" and abs(row["dilution"]) < 1e-3 and row["deviation"] < 1e-2
        assert row["interference"] > 0.3  # the others' changes act on its inputs, before fusion
    weakened = merge(sources(loras, [1.0] * 5, inputs), "normalised").report["sources"]
    assert all(row["kept"] < 0.6 for row in weakened)


def test_fusion_adds_what_has_no_inputs_and_says_so() -> None:
    loras = [random_lora(0), random_lora(1), random_lora(2, targets=("attn.to_q",))]
    inputs = [random_inputs(loras[0], 0), None, None]
    merged = merge(sources(loras, [1.0, 1.0, 1.0], inputs), "fusion")
    alone = merge(sources(loras[:1], [1.0], inputs[:1]), "fusion")
    expected = dense(alone.weights)
    for name, change in weighted(loras[1:], [1.0, 1.0]).items():
        expected[name] = expected.get(name, 0) + change
    assert relative_error(dense(merged.weights), expected) < EXACT
    assert [note.split()[0] for note in merged.report["notes"]] == ["lora-1", "lora-2"]
    assert "added as in a sum" in merged.report["notes"][0]
    assert [row["basis"] for row in merged.report["sources"]] == ["inputs", "weights", "weights"]


def test_inputs_of_shared_layers_have_one_place() -> None:
    block = "transformer_blocks.7.attn"
    assert input_site(f"{block}.add_k_proj") == input_site(f"{block}.add_v_proj") == f"{block}.add_q_proj"
    assert input_site(f"{block}.to_v") == f"{block}.to_q"
    single = "single_transformer_blocks.7"
    assert input_site(f"{single}.proj_mlp") == input_site(f"{single}.attn.to_k") == f"{single}.attn.to_q"
    assert input_site(f"{block}.to_out.0") == f"{block}.to_out.0"
    assert input_site(f"{single}.proj_out") == f"{single}.proj_out"


def test_low_rank_factor_is_the_best_one() -> None:
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)).double()
    moment = x.T @ x / 200
    for columns in (3, 12, 20):
        factor = low_rank_factor(moment, columns)
        left = torch.linalg.eigvalsh(moment).flip(0)[columns:].norm()
        assert float((factor.T @ factor - moment).norm()) == pytest.approx(float(left), abs=1e-9)


def test_inputs_file_round_trips_and_refuses_others(tmp_path: Path) -> None:
    lora = tmp_path / "a car.v2.safetensors"
    path = inputs_path(lora)
    assert path.name == "a car.v2.inputs.safetensors" and read_inputs(path) is None
    inputs = random_inputs(LORAS[0], 0)
    write_inputs(path, inputs)
    back = read_inputs(path)
    assert back.concept.keys() == inputs.concept.keys()
    assert all(torch.equal(back.keep[n], inputs.keep[n].bfloat16()) for n in inputs.keep)
    write_lora(path, LORAS[0], {})
    with pytest.raises(LoraError, match="no concept inputs"):
        read_inputs(path)
    with pytest.raises(LoraError, match="another Flux"):
        merge(sources(LORAS[:1], [1.0], [random_inputs(LORAS[0], 0, hidden=16)]), "fusion")


# ---- the report


def test_report_of_a_normalised_sum_of_orthogonal_loras() -> None:
    """N LoRAs on inputs and outputs of their own: each keeps 1 / N, and none disturbs another."""
    loras = []
    for i in range(4):
        a, b = torch.zeros(2, HIDDEN), torch.zeros(HIDDEN, 2)
        a[0, 2 * i] = a[1, 2 * i + 1] = b[2 * i, 0] = b[2 * i + 1, 1] = 1 + i
        loras.append({"transformer_blocks.0.attn.add_q_proj": (a, b, 2.0)})
    report = merge(sources(loras, [1.0] * 4), "normalised").report
    assert [row["kept"] for row in report["sources"]] == [0.25] * 4
    assert [row["dilution"] for row in report["sources"]] == [0.75] * 4
    assert [row["interference"] for row in report["sources"]] == [0.0] * 4
    norms = [(1 + i) ** 4 for i in range(4)]
    assert [row["share"] for row in report["sources"]] == [round(n / sum(norms), 4) for n in norms]
    assert report["rank"] == 8


def test_report_against_dense_numbers() -> None:
    loras = [random_lora(i, rank=2 + i) for i in range(3)]
    inputs = [random_inputs(loras[0], 5), random_inputs(loras[1], 6), None]
    weights = [1.0, -0.5, 2.0]
    merged = merge(sources(loras, weights, inputs), "svd", rank=6)
    changes = [{n: w * c for n, c in dense(lora).items()} for w, lora in zip(weights, loras, strict=True)]
    result = dense(merged.weights)
    for i, row in enumerate(merged.report["sources"]):
        own = kept = distance = 0.0
        others = torch.zeros(3)
        for name in changes[i]:
            f = inputs[i].concept[input_site(name)].double().T if inputs[i] else torch.eye(HIDDEN, dtype=torch.float64)
            mine = changes[i][name] @ f
            own += float(mine.square().sum())
            kept += float((mine * (result[name] @ f)).sum())
            distance += float((result[name] @ f - mine).square().sum())
            for j in range(3):
                theirs = changes[j][name] @ f
                others[j] += float(theirs.square().sum() if inputs[i] else (theirs * mine).sum().abs())
        assert row["kept"] == pytest.approx(kept / own, abs=2e-4)
        assert row["deviation"] == pytest.approx(math.sqrt(distance / own), abs=2e-3)
        for j, value in enumerate(merged.report["interference"][i]):
            ratio = float(others[j]) / own
            assert (
                value is None if i == j else value == pytest.approx(math.sqrt(ratio) if inputs[i] else ratio, abs=2e-4)
            )


# ---- refusals


@pytest.mark.parametrize(
    ("mode", "settings", "weights", "message"),
    [
        ("mean", {}, WEIGHTS, "Unknown way to merge"),
        ("svd", {}, WEIGHTS, "needs a rank or a relative error"),
        ("svd", {"rank": 2, "error": 0.1}, WEIGHTS, "needs a rank or a relative error"),
        ("sum", {"rank": 2}, WEIGHTS, "needs a rank or a relative error"),
        ("svd", {"rank": 0}, WEIGHTS, "whole number"),
        ("svd", {"error": 1.5}, WEIGHTS, "between 0 and 1"),
        ("fusion", {"preserve": -1.0}, WEIGHTS, "number from 0"),
        ("sum", {}, [1.0, float("nan"), 1.0], "no finite number"),
        ("sum", {}, [0.0, 0.0, 0.0], "nothing to merge"),
        ("normalised", {}, [1.0, -1.0, 0.0], "positive total"),
    ],
)
def test_settings_that_make_no_sense(mode: str, settings: dict, weights: list[float], message: str) -> None:
    with pytest.raises((ConfigError, LoraError), match=message):
        merge(sources(weights=weights), mode, **settings)


def test_loras_that_cannot_be_merged() -> None:
    with pytest.raises(LoraError, match="cancel each other"):
        merge(sources([LORAS[0], LORAS[0]], [1.0, -1.0]), "sum")
    with pytest.raises(LoraError, match="different models"):
        merge(sources([LORAS[0], random_lora(0, hidden=16)], [1.0, 1.0]), "sum")
    with pytest.raises(LoraError, match="nothing to merge"):
        merge([], "sum")


# ---- files


@pytest.fixture
def lora_paths(tmp_path: Path) -> list[Path]:
    paths = []
    for i, lora in enumerate(LORAS):
        concept = {"phrase": f"thing {i}", "synonyms": ["stuff"]}
        metadata = {KEY_CONCEPT: json.dumps(concept), KEY_METHOD: "esd", KEY_BASE: "flux-1"}
        paths.append(tmp_path / f"lora-{i}.safetensors")
        write_lora(paths[-1], lora, metadata, (torch.float32, torch.bfloat16, torch.float32)[i])
    return paths


def test_merged_file_says_what_it_was_made_of(lora_paths: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "merged.safetensors"
    report = merge_files(lora_paths, out, "sum", weights=WEIGHTS)
    weights, metadata = read_lora(out)
    assert relative_error(dense(weights), weighted(LORAS, WEIGHTS)) < EXACT
    facts = json.loads(metadata[KEY_MERGE])
    assert facts["mode"] == "sum" and [source["weight"] for source in facts["sources"]] == WEIGHTS
    assert facts["sources"][1]["file"] == "lora-1.safetensors" and len(facts["sources"][1]["sha256"]) == 64
    assert metadata[KEY_BASE] == "flux-1" and metadata[KEY_METHOD] == "merge (sum)"
    assert [row["concept"] for row in report["sources"]] == ["thing 0", "thing 1", "thing 2"]
    shown = describe(out)
    assert shown["concept"] == "thing 0, thing 1, thing 2" and shown["host_format"] is True
    assert shown["merge"] == facts and json.loads(json.dumps(report)) == report
    # merging is reproducible, also from a merge
    merge_files(lora_paths, tmp_path / "again.safetensors", "sum", weights=WEIGHTS)
    assert (tmp_path / "again.safetensors").read_bytes() == out.read_bytes()
    merge_files([out, lora_paths[0]], tmp_path / "nested.safetensors", "concat", weights=[2.0, 1.0])
    nested = json.loads(read_lora(tmp_path / "nested.safetensors")[1][KEY_MERGE])
    assert nested["sources"][0]["sources"] == facts["sources"]


def test_merged_file_in_bf16_says_how_far_it_rounds(lora_paths: list[Path], tmp_path: Path) -> None:
    report = merge_files(lora_paths, tmp_path / "m.safetensors", "sum", weights=WEIGHTS, dtype="bf16")
    found = relative_error(dense(read_lora(tmp_path / "m.safetensors")[0]), weighted(LORAS, WEIGHTS))
    assert report["rounding"] == pytest.approx(found, rel=0.3) and 1e-4 < found < 1e-2


def test_no_file_is_overwritten_by_accident(lora_paths: list[Path], tmp_path: Path) -> None:
    out, before = lora_paths[0], lora_paths[0].read_bytes()
    for write in (lambda: merge_files(lora_paths, out, "sum"), lambda: convert(lora_paths[1], out)):
        with pytest.raises(LoraError, match="exists already"):
            write()
    assert out.read_bytes() == before
    assert numbered(out).name == "lora-0 (2).safetensors"
    merge_files(lora_paths, out, "sum", overwrite=True)  # one of its own sources
    assert out.read_bytes() != before and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", ["x.txt", "nul.safetensors", "a:b.safetensors", ".safetensors", "x.pt"])
def test_names_that_cannot_be(name: str, lora_paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        merge_files(lora_paths, tmp_path / name, "sum")
    assert len(list(tmp_path.iterdir())) == 3


def test_conversion_is_exact(lora_paths: list[Path], tmp_path: Path) -> None:
    shown = convert(lora_paths[1], tmp_path / "c.safetensors")
    assert shown["dtypes"] == ["bfloat16"] and shown["dialect"] == "diffusers"
    first, second = load_file(lora_paths[1]), load_file(tmp_path / "c.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_bad_sources_leave_nothing_behind(lora_paths: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    save_file({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(2, 4)}, bad)
    with pytest.raises(LoraError, match="lacks lora_B"):
        merge_files([*lora_paths, bad], tmp_path / "merged.safetensors", "sum")
    with pytest.raises(ConfigError, match="one weight for each"):
        merge_files(lora_paths, tmp_path / "merged.safetensors", "sum", weights=[1.0])
    assert not (tmp_path / "merged.safetensors").exists()
    assert PRESERVE > 0
