"""The bank and the methods on a tiny random Flux, against separate computations."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.support.flux_models import tiny_transformer
from training.bank import digest, read_tensors, record, used_steps, write_tensors
from training.concepts import Concept
from training.errors import CheckpointError, ConceptError
from training.flow import Flow
from training.lora.adapter import adapter_parameters, add_adapter
from training.methods import METHODS, Prompts, losses, make_method
from training.methods.base import Term
from training.methods.eraseanything import EraseAnything
from training.methods.published import PublishedSchedule
from training.models.attention import AttentionCapture
from training.models.sampling import initial_noise, sample
from training.models.text import TextEmbeds
from training.models.velocity import velocity
from training.settings import SETTINGS, ErasureConfig, names_affecting

LENGTH = 32
CONCEPT = Concept(
    "car",
    synonyms=("automobile",),
    irrelevant=("dog", "apple", "bus"),
    preserve=("", "a dog", "a photo of an apple"),
)
CONFIG = ErasureConfig(erase_prompts=4, batch_erase=3, batch_preserve=3, rank=2, weight_rsc=0.01, eta=1.0)


def embeds(rows: int) -> TextEmbeds:
    generator = torch.Generator().manual_seed(5)
    return TextEmbeds(torch.randn(rows, LENGTH, 24, generator=generator), torch.randn(rows, 20, generator=generator))


def adapted_flow(noisy: bool = True) -> Flow:
    """A tiny Flux with an adapter; `noisy`: one that changes the output (B is not zero)."""
    transformer = tiny_transformer()
    add_adapter(transformer, ["attn.add_q_proj", "attn.add_k_proj"], 2, 2.0, 0)
    if noisy:
        with torch.no_grad():
            for number, parameter in enumerate(adapter_parameters(transformer)):
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return Flow(transformer, torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0]), (2, 3), 3.5)


@pytest.fixture(scope="module")
def tokenizer(demo_folder: Path):
    return AutoTokenizer.from_pretrained(demo_folder / "tokenizer_2", local_files_only=True)


def ready(tokenizer, flow: Flow, config: ErasureConfig = CONFIG, concept: Concept = CONCEPT) -> EraseAnything:
    method, prompts = make_method(concept, config.for_kind(concept.kind)), Prompts()
    method.plan(prompts, tokenizer, LENGTH)
    encoded = embeds(len(prompts.texts))
    bank = method.collect(flow, encoded, lambda done, total: None)
    method.use(bank, encoded)
    method.texts = prompts.texts
    return method


@pytest.mark.parametrize("name", METHODS)
def test_settings_that_are_said_not_to_reach_the_bank_do_not(tokenizer, name: str):
    """All of them at once, each at another value; those left out do change it."""
    other = {
        "bilevel": False,
        "steps": 3,
        "rank": 5,
        "alpha": 1.0,
        "targets": "all",
        "blocks": (0,),
        "lr_erase": 0.5,
        "lr_preserve": 0.5,
        "weight_decay": 0.1,
        "weight_esd": 3.0,
        "weight_attn": 0.0,
        "weight_lora": 0.0,
        "eta": 3.0,
        "tau": 1.0,
        "batch_erase": 1,
        "batch_preserve": 1,
        "refresh_every": 2,
        "random_strength": True,
        "checkpoint_every": 7,
        "keep_checkpoints": 7,
        "sample_every": 7,
        "sample_count": 1,
        "gradient_checkpointing": "on",
        "stream_blocks": 2,
        "early_stopping": 9,
        "compile": True,
    }
    assert set(other) == names_affecting("weights", "output")
    config = dataclasses.replace(CONFIG, method=name)
    assert all(getattr(config, setting) != value for setting, value in other.items())

    def bank(config: ErasureConfig) -> str:
        return digest(ready(tokenizer, adapted_flow(), config).bank)

    assert bank(config) == bank(dataclasses.replace(config, **other))
    assert bank(config) != bank(dataclasses.replace(config, t_min=0.0))


def test_used_steps():
    levels = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
    assert [used_steps(levels, t) for t in (0.0, 0.1, 0.2, 0.5, 0.79, 0.9, 0.99)] == [4, 4, 3, 2, 2, 1, 1]


def test_the_bank_holds_trajectories_stopped_at_t_and_the_bases_velocities():
    flow, base, text = adapted_flow(), tiny_transformer(), embeds(4)
    done = []
    bank = record(flow, text, [1, 3], [7, 8], {"empty": [0, 0]}, 3, lambda d, t: done.append((d, t)))
    assert bank["row"].tolist() == [1, 1, 1, 3, 3, 3]
    torch.testing.assert_close(bank["t"], torch.tensor([1.0, 0.8, 0.5]).repeat(2))
    assert done[-1] == (6, 6)
    for number, (row, seed) in enumerate([(1, 7), (3, 8)]):
        noise = initial_noise([seed], flow.grid, 4)
        for step in range(3):
            point = 3 * number + step
            # the engine's own sampler on a transformer that never had an adapter
            x = sample(base, text[row], noise, flow.levels, 3.5, flow.grid, stop_at=step)
            torch.testing.assert_close(bank["x"][point : point + 1], x, atol=2e-4, rtol=1e-4)
            for name, prompt in (("own", row), ("empty", 0)):
                v = velocity(base, x, float(flow.levels[step]), text[prompt], 3.5, flow.grid)
                torch.testing.assert_close(bank[name][point : point + 1], v, atol=2e-4, rtol=1e-4)


def test_the_teacher_is_the_base_whatever_the_adapter_has_learnt():
    flow, base, text = adapted_flow(), tiny_transformer(), embeds(1)
    x, t = initial_noise([1], flow.grid, 4), torch.tensor([0.7])
    plain = velocity(base, x, t, text, 3.5, flow.grid)
    torch.testing.assert_close(flow.teacher(x, t, text), plain)
    assert not torch.allclose(flow.student(x, t, text), plain, atol=1e-3)
    assert not flow.teacher(x, t, text).requires_grad and flow.student(x, t, text).requires_grad


@pytest.mark.parametrize("name", METHODS)
def test_residue_is_the_share_of_the_way_that_is_left(tokenizer, name: str):
    config = dataclasses.replace(CONFIG, method=name, eta=1.0 if name == "gem" else 0.5)
    method = ready(tokenizer, adapted_flow(), config)
    assert method.residue(adapted_flow(noisy=False)) == pytest.approx(1, abs=1e-4)
    flow, bank = adapted_flow(), method.bank
    eta = config.eta if name in ("eraseanything", "esd") else 0.0
    other = bank["erase.empty" if "erase.empty" in bank else "erase.anchor"].double()
    own = bank["erase.own"].double()
    goal = own + (1 + eta) * (other - own)
    found = [
        flow.student(x[None], t[None], method.embeds[row[None]])
        for x, t, row in zip(bank["erase.x"].float(), bank["erase.t"].float(), bank["erase.row"], strict=True)
    ]
    student = torch.cat(found).detach().double()
    assert len(own) <= 32  # all of them are measured
    expected = float((student - goal).square().sum() / (own - goal).square().sum())
    assert method.residue(flow) == pytest.approx(expected, rel=1e-3) and expected != pytest.approx(1, abs=2e-3)


def test_strength_zero_changes_nothing_and_ends_with_the_context():
    flow, text = adapted_flow(), embeds(1)
    x, t = initial_noise([1], flow.grid, 4), torch.tensor([0.7])
    base, full = flow.teacher(x, t, text), flow.student(x, t, text).detach()
    with flow.strength(0.0):
        torch.testing.assert_close(flow.student(x, t, text).detach(), base, atol=0, rtol=0)
    with flow.strength(0.5):
        half = flow.student(x, t, text).detach()
    assert not torch.allclose(half, base, atol=1e-3) and not torch.allclose(half, full, atol=1e-3)
    torch.testing.assert_close(flow.student(x, t, text).detach(), full, atol=0, rtol=0)


def test_a_fresh_adapter_is_exactly_the_teacher(tokenizer):
    flow = adapted_flow(noisy=False)
    method = ready(tokenizer, flow, dataclasses.replace(CONFIG, weight_rsc=0.0))
    terms = {t.name: t for t in method.losses("preserve", flow, torch.Generator().manual_seed(0))}
    assert float(terms["lora"].value) < 1e-10
    esd = {t.name: t for t in method.losses("erase", flow, torch.Generator().manual_seed(0))}["esd"]
    point = method._draw("erase", 3, torch.Generator().manual_seed(0), flow)
    distance = (2 * (point["empty"] - point["own"])).square().mean()  # the target is 2 (v(∅) - v(c)) away at η = 1
    assert float(esd.value) == pytest.approx(float(distance), rel=1e-3)


STYLE = Concept("twemoji", "abstraction", "a {subject} in the style of {}", irrelevant=("noto", "openmoji", "fluent"))
RELATION = Concept("above", "relationship", "a {subject} {} a {object}", irrelevant=("next to", "below", "behind"))


@pytest.mark.parametrize("name", ["eraseanything", "esd"])
def test_styles_and_relations_are_sent_to_the_rest_of_their_prompt(tokenizer, name: str):
    def targets(concept: Concept, **settings) -> list[tuple[str, str]]:
        config = dataclasses.replace(CONFIG, method=name, **settings).for_kind(concept.kind)
        method, prompts = make_method(concept, config), Prompts()
        method.plan(prompts, tokenizer, LENGTH)
        return [(prompts.texts[text], prompts.texts[target]) for text, target in method.erase]

    style, relation = targets(STYLE, shuffle=False), targets(RELATION, shuffle=False)
    assert all(text == (f"{target} in the style of twemoji" if target else "twemoji") for text, target in style)
    assert {target for _, target in style} - {""}
    assert all(target == text.replace("above", "next to") for text, target in relation)
    for empty in (targets(CONCEPT), targets(STYLE, erase_to="empty"), targets(RELATION, erase_to="empty")):
        assert {target for _, target in empty} == {""}
    assert "a photo" in {target for _, target in targets(CONCEPT, erase_to="rest")}


@pytest.mark.parametrize("name", ["eraseanything", "esd", "concept_ablation"])
@pytest.mark.parametrize("refreshed", [False, True])
def test_a_relation_is_learnt_where_the_other_one_leads(tokenizer, name: str, refreshed: bool):
    """On the base's path under the target prompt; on the student's own one under the erase prompt."""
    flow, base = adapted_flow(), tiny_transformer()
    config = dataclasses.replace(CONFIG, method=name, refresh_every=3, anchor="next to")
    method = ready(tokenizer, flow, config, RELATION)
    bank, steps = method.bank, used_steps(flow.levels, CONFIG.t_min)
    other = f"erase.{method.other}"
    if refreshed:
        before, bank = bank, method.refresh(flow, 3, lambda done, total: None)
        number = int((bank["erase.x"] != before["erase.x"]).flatten(1).any(1).nonzero()[0]) // steps
    else:
        number = 1
    row, target = method.erase[number]
    assert row != target
    point = slice(number * steps + 1, number * steps + 2)
    start = bank["erase.x"][number * steps : number * steps + 1]
    walker, prompt = (flow.transformer, row) if refreshed else (base, target)
    x = sample(walker, method.embeds[prompt], start, flow.levels, 3.5, flow.grid, stop_at=1)
    torch.testing.assert_close(bank["erase.x"][point], x, atol=2e-4, rtol=1e-4)
    assert bank["erase.row"][point].tolist() == [row]
    for tensor, prompt in (("erase.own", row), (other, target)):
        v = velocity(base, x, float(flow.levels[1]), method.embeds[prompt], 3.5, flow.grid)
        torch.testing.assert_close(bank[tensor][point], v, atol=2e-4, rtol=1e-4)


def test_random_strength_sends_weak_adapters_less_far(tokenizer):
    flow = adapted_flow(noisy=False)
    method = ready(tokenizer, flow, dataclasses.replace(CONFIG, random_strength=True))
    for seed in range(3):
        terms = {t.name: t for t in method.losses("erase", flow, torch.Generator().manual_seed(seed))}
        generator = torch.Generator().manual_seed(seed)
        point = method._draw("erase", 3, generator, flow)
        strength = float(torch.rand((), generator=generator))
        distance = (2 * strength * (point["empty"] - point["own"])).square().mean()
        assert float(terms["esd"].value) == pytest.approx(float(distance), rel=1e-3)
        assert terms["attn"].weight == pytest.approx(CONFIG.weight_attn * strength)


def test_a_thing_beside_the_concept_is_where_the_prompt_is_sent(tokenizer):
    """Exactly there: what lies beyond "a dog" is no dog any more."""
    flow = adapted_flow(noisy=False)
    method = ready(tokenizer, flow, dataclasses.replace(CONFIG, erase_prompts=24))
    pairs = [(method.texts[row], method.texts[target]) for row, target in method.erase if method.texts[target]]
    assert pairs and all(re.fullmatch(r"an? \w+", target) for _, target in pairs)
    assert all(target.split()[1] in text and re.search("car|automobile", text) for text, target in pairs)
    ends = {row: 0.0 if method.texts[target] else method.config.eta for row, target in method.erase}
    for row, eta in ends.items():
        picked = torch.nonzero(method.bank["erase.row"] == row).flatten()[:1]
        point = method._points("erase", picked, flow.device)
        target = point["own"] + (1 + eta) * (point["empty"] - point["own"])
        torch.testing.assert_close(method._destination(point, 1.0), target)


def test_attention_is_that_of_the_concepts_tokens_in_each_prompt(tokenizer):
    flow = adapted_flow()
    method = ready(tokenizer, flow)
    for prompt, (row, _) in zip(method.erase_prompts, method.erase, strict=True):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt.text).input_ids)
        marked = "".join(tokens[i] for i in torch.nonzero(method.masks[row]).flatten().tolist())
        assert marked.replace("▁", "") == prompt.phrase, prompt.text
    point = method._draw("erase", 3, torch.Generator().manual_seed(4), flow)
    capture = AttentionCapture(method.masks[point["row"]], [0, 1])
    flow.student(point["x"], point["t"], method.embeds[point["row"]], capture=capture)
    terms = {t.name: t for t in method.losses("erase", flow, torch.Generator().manual_seed(4))}
    assert float(terms["attn"].value) == pytest.approx(float(losses.attention_mass(capture.columns)), rel=1e-5)
    assert float(terms["attn"].value) > 0


def test_contrast_substitutes_words_in_the_same_prompt_at_the_same_noise(tokenizer):
    flow = adapted_flow()
    method = ready(tokenizer, flow)
    assert method.contrast
    for concept, synonym, words in method.contrast:
        text = method.texts[concept]
        assert method.texts[synonym].replace("an automobile", "a car").replace("automobile", "car") == text.replace(
            "an car", "a car"
        )
        assert len(words) == 3 and len({concept, synonym, *words}) == 5
    bank = method.bank
    one, row = bank["contrast.noise"][:1], method.contrast[0][1]
    capture = AttentionCapture(method.masks[[row]], [0, 1])
    flow.teacher(one, torch.ones(1), method.embeds[row], capture=capture)  # a whole pass, not a truncated one
    torch.testing.assert_close(
        bank["contrast.synonym"][:1], losses.attention_features(capture.columns), atol=1e-5, rtol=1e-4
    )
    terms = {t.name: t for t in method.losses("preserve", flow, torch.Generator().manual_seed(0))}
    assert float(terms["rsc"].value) > 0 and terms["rsc"].value.requires_grad


def test_without_synonyms_the_contrast_is_against_the_base_itself(tokenizer):
    flow = adapted_flow()
    method = ready(tokenizer, flow, concept=dataclasses.replace(CONCEPT, synonyms=()))
    assert all(concept == synonym for concept, synonym, _ in method.contrast)


def test_only_the_adapter_learns(tokenizer):
    flow = adapted_flow()
    method = ready(tokenizer, flow)
    for level in method.levels():
        terms = method.losses(level.name, flow, torch.Generator().manual_seed(0))
        sum(t.weight * t.value for t in terms).backward()
    trained = {id(p) for p in adapter_parameters(flow.transformer)}
    for parameter in flow.transformer.parameters():
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == (id(parameter) in trained)


def test_a_bank_round_trips_and_its_digest_sees_every_bit(tokenizer, tmp_path: Path):
    bank = ready(tokenizer, adapted_flow()).bank
    write_tensors(tmp_path / "bank.safetensors", bank, {"a": "b"}, "bank")
    read, metadata = read_tensors(tmp_path / "bank.safetensors")
    assert metadata == {"a": "b"} and digest(read) == digest(bank)
    name = "erase.own"
    nudged = bank[name].clone()
    nudged.view(torch.int32).view(-1)[3] ^= 1
    assert digest({**bank, name: nudged}) != digest(bank)
    (tmp_path / "bank.safetensors").write_bytes(b"junk")
    with pytest.raises(CheckpointError):
        read_tensors(tmp_path / "bank.safetensors")


def test_every_method_of_the_settings_exists():
    assert set(METHODS) == set(SETTINGS["method"].choices)


def settings(**changes) -> ErasureConfig:
    return dataclasses.replace(CONFIG, **changes)


def terms_of(method, flow: Flow, level: str = "erase", seed: int = 0) -> dict[str, Term]:
    return {t.name: t for t in method.losses(level, flow, torch.Generator().manual_seed(seed))}


@pytest.mark.parametrize("name", ["esd", "concept_ablation", "gem"])
def test_other_methods_have_one_level_and_move_nothing_but_the_adapter(tokenizer, name: str):
    flow = adapted_flow()
    method = ready(tokenizer, flow, settings(method=name, lr_erase=0.25))
    assert [(level.name, level.learning_rate) for level in method.levels()] == [("erase", 0.25)]
    terms = terms_of(method, flow)
    assert set(terms) == {"esd": {"esd"}, "concept_ablation": {"anchor", "lora"}, "gem": {"gem"}}[name]
    sum(t.weight * t.value for t in terms.values()).backward()
    trained = {id(p) for p in adapter_parameters(flow.transformer)}
    for parameter in flow.transformer.parameters():
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == (id(parameter) in trained)


def test_esd_is_its_formula_and_keeps_nothing(tokenizer):
    flow = adapted_flow()
    method = ready(tokenizer, flow, settings(method="esd", weight_esd=3.0, eta=2.0))
    assert {name.split(".")[0] for name in method.bank} == {"erase"}
    point = method._draw("erase", CONFIG.batch_erase, torch.Generator().manual_seed(0), flow)
    student = flow.student(point["x"], point["t"], method.embeds[point["row"]]).detach()
    target = point["empty"] - 2.0 * (point["own"] - point["empty"])
    esd = terms_of(method, flow)["esd"]
    assert esd.weight == 3.0 and float(esd.value) == pytest.approx(float((student - target).square().mean()), rel=1e-4)


@pytest.mark.parametrize(("name", "leading"), [("concept_ablation", "bus"), ("gem", "car")])
def test_anchored_banks_hold_the_bases_velocities_on_the_right_trajectories(tokenizer, name: str, leading: str):
    """Concept Ablation follows the anchor's trajectories, GEM the concept's; both know v_o(c) and v_o(c_a) there."""
    flow, base = adapted_flow(), tiny_transformer()
    method = ready(tokenizer, flow, settings(method=name))
    steps = used_steps(flow.levels, CONFIG.t_min)
    assert len(method.bank["erase.row"]) == steps * len(method.erase) > 0
    for number, (prompt, (row, anchor)) in enumerate(zip(method.erase_prompts, method.erase, strict=True)):
        # "bus" is the last irrelevant word: that of middle distance
        bus = "buses" if prompt.phrase in ("cars", "automobiles") else "bus"
        agreed = prompt.text.replace(f"an {prompt.phrase}", f"a {prompt.phrase}")
        assert method.texts[anchor] == agreed.replace(prompt.phrase, bus)
        path = anchor if leading == "bus" else row
        noise = initial_noise([method.first_seed + number], flow.grid, 4)
        for step in range(steps):
            point = slice(number * steps + step, number * steps + step + 1)
            x = sample(base, method.embeds[path], noise, flow.levels, 3.5, flow.grid, stop_at=step)
            assert method.bank["erase.row"][point].tolist() == [row]
            torch.testing.assert_close(method.bank["erase.x"][point], x, atol=2e-4, rtol=1e-4)
            for tensor, prompt in (("own", row), ("anchor", anchor)):
                v = velocity(base, x, float(flow.levels[step]), method.embeds[prompt], 3.5, flow.grid)
                torch.testing.assert_close(method.bank[f"erase.{tensor}"][point], v, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("strength", [False, True])
def test_concept_ablation_starts_at_the_distance_to_the_anchor_and_keeps_the_anchor(tokenizer, strength: bool):
    flow = adapted_flow(noisy=False)
    method = ready(tokenizer, flow, settings(method="concept_ablation", random_strength=strength))
    generator = torch.Generator().manual_seed(0)
    point = method._draw("erase", CONFIG.batch_erase, generator, flow)
    scale = float(torch.rand((), generator=generator)) if strength else 1.0
    terms = terms_of(method, flow)
    distance = (scale * (point["anchor"] - point["own"])).square().mean()
    assert float(distance) > 1e-4 and float(terms["anchor"].value) == pytest.approx(float(distance), rel=1e-3)
    assert float(terms["lora"].value) < 1e-10
    assert {method.texts[row] for row in method.preserve} == {method.texts[row] for _, row in method.erase}
    assert set(terms_of(ready(tokenizer, flow, settings(method="concept_ablation", weight_lora=0.0)), flow)) == {
        "anchor"
    }


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_gem_is_its_formula(tokenizer, eta: float):
    flow = adapted_flow()
    method = ready(tokenizer, flow, settings(method="gem", eta=eta))
    point = method._draw("erase", CONFIG.batch_erase, torch.Generator().manual_seed(0), flow)
    student = flow.student(point["x"], point["t"], method.embeds[point["row"]]).detach().double()
    gaps = []
    for v, anchor, own in zip(student, point["anchor"].double(), point["own"].double(), strict=True):
        near, far = float(((v - anchor) ** 2).sum()) ** 0.5, float(((v - own) ** 2).sum()) ** 0.5
        gaps.append(max(0.0, near - eta * far))
    assert float(terms_of(method, flow)["gem"].value) == pytest.approx(100 * sum(gaps) / len(gaps), rel=1e-3)


@pytest.mark.parametrize("name", ["esd", "concept_ablation", "gem"])
def test_other_methods_learn_from_a_fresh_adapter(tokenizer, name: str):
    """From B = 0, where GEM's second norm has no slope, the loss on one draw falls to less than half."""
    flow = adapted_flow(noisy=False)
    method = ready(tokenizer, flow, settings(method=name, erase_prompts=1, weight_lora=0.0, eta=float(name == "gem")))
    optimizer = torch.optim.AdamW(adapter_parameters(flow.transformer), lr=3e-2, weight_decay=0.0)
    values = []
    for _ in range(30):
        (term,) = terms_of(method, flow).values()
        optimizer.zero_grad()
        term.value.backward()
        optimizer.step()
        values.append(float(term.value.detach()))
    assert all(torch.isfinite(p).all() for p in adapter_parameters(flow.transformer))
    assert values[-1] < 0.5 * values[0], values


def test_the_anchor_is_the_word_given(tokenizer):
    method = ready(tokenizer, adapted_flow(), settings(method="gem", anchor=" red  dog "))
    assert method.anchor == "red dog"
    assert all("red dog" in method.texts[row] for _, row in method.erase)


@pytest.mark.parametrize(
    ("anchor", "message"), [("Automobile", "contains the concept"), ("red car", "contains the concept"), ("猫", "know")]
)
def test_anchors_of_no_use(tokenizer, anchor: str, message: str):
    method = make_method(CONCEPT, settings(method="concept_ablation", anchor=anchor).for_kind("entity"))
    with pytest.raises(ConceptError, match=message):
        method.plan(Prompts(), tokenizer, LENGTH)


def test_multi_objective_is_one_update_on_the_sum_of_both_levels(tokenizer):
    flow = adapted_flow()
    two, one = ready(tokenizer, flow), ready(tokenizer, flow, settings(bilevel=False, lr_erase=0.5))
    assert [level.learning_rate for level in one.levels()] == [0.5]
    parameters = adapter_parameters(flow.transformer)

    def gradient(method) -> tuple[set[str], torch.Tensor]:
        generator, names = torch.Generator().manual_seed(1), []
        for parameter in parameters:
            parameter.grad = None
        for level in method.levels():
            terms = method.losses(level.name, flow, generator)
            sum(t.weight * t.value for t in terms).backward()
            names += [t.name for t in terms]
        return set(names), torch.cat([p.grad.flatten() for p in parameters])

    (names, whole), (both, total) = gradient(one), gradient(two)
    assert names == both == {"esd", "attn", "lora", "rsc"}
    torch.testing.assert_close(whole, total, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("name", "other"), [("eraseanything", "empty"), ("concept_ablation", "anchor")])
def test_a_refresh_samples_a_quarter_of_the_trajectories_with_the_student(tokenizer, name: str, other: str):
    flow, base = adapted_flow(), tiny_transformer()
    method = ready(tokenizer, flow, settings(method=name, refresh_every=3))
    steps, before = used_steps(flow.levels, CONFIG.t_min), dict(method.bank)
    assert all(not method.refresh(flow, step, lambda done, total: None) for step in (0, 1, 2, 4))
    changed = method.refresh(flow, 6, lambda done, total: None)
    assert set(changed) == {f"erase.{part}" for part in ("row", "t", "x", "own", other)}
    assert all(method.bank[tensor] is value for tensor, value in changed.items())
    assert all(method.bank[tensor] is before[tensor] for tensor in set(before) - set(changed))
    moved = (changed["erase.x"] != before["erase.x"]).flatten(1).any(1).view(len(method.erase), steps)
    assert moved.all(1).tolist() == moved.any(1).tolist() and int(moved.any(1).sum()) == 1
    number = int(moved.any(1).nonzero())
    row, target = method.erase[number]
    for step in range(steps):
        point = slice(number * steps + step, number * steps + step + 1)
        x0 = changed["erase.x"][number * steps : number * steps + 1]
        # the engine's own sampler on the transformer with its adapter on
        x = sample(flow.transformer, method.embeds[row], x0, flow.levels, 3.5, flow.grid, stop_at=step)
        torch.testing.assert_close(changed["erase.x"][point], x, atol=2e-4, rtol=1e-4)
        assert changed["erase.row"][point].tolist() == [row]
        for tensor, prompt in (("own", row), (other, target)):
            v = velocity(base, x, float(flow.levels[step]), method.embeds[prompt], 3.5, flow.grid)
            torch.testing.assert_close(changed[f"erase.{tensor}"][point], v, atol=2e-4, rtol=1e-4)
    assert not any(value.requires_grad for value in changed.values())


def test_a_refresh_depends_on_step_adapter_and_bank_alone(tokenizer):
    flow = adapted_flow()
    method = ready(tokenizer, flow, settings(method="esd", refresh_every=3))
    before, done = method.bank, lambda done, total: None
    first = digest(method.refresh(flow, 3, done))
    torch.randn(5)
    method.bank = before
    assert digest(method.refresh(flow, 3, done)) == first
    method.bank = before
    assert digest(method.refresh(flow, 6, done)) != first


def test_the_published_schedule_costs_what_its_authors_code_does(tokenizer):
    """142 passes without gradient, and 3 with gradient, in a pair; its losses move the adapter."""
    flow = dataclasses.replace(adapted_flow(), levels=torch.linspace(1, 0, 29))
    method, prompts = PublishedSchedule(CONCEPT, CONFIG.for_kind("entity")), Prompts()
    method.plan(prompts, tokenizer, LENGTH)
    encoded = embeds(len(prompts.texts))
    method.use(method.collect(flow, encoded, lambda done, total: None), encoded)
    passes = {True: 0, False: 0}

    def count(*_: object) -> None:
        passes[torch.is_grad_enabled()] += 1

    handle = flow.transformer.register_forward_hook(count)
    generator = torch.Generator().manual_seed(0)
    terms = [term for level in method.levels() for term in method.losses(level.name, flow, generator)]
    handle.remove()
    assert passes == {False: 142, True: 3}
    assert [term.name for term in terms] == ["esd", "attn", "lora", "rsc"]
    for term in terms:
        assert term.value.isfinite()
        adapter = adapter_parameters(flow.transformer)
        gradients = torch.autograd.grad(term.value, adapter, allow_unused=True, retain_graph=True)
        assert any(g is not None and g.abs().max() > 0 for g in gradients), term.name
