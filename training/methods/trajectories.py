"""What methods that learn on sampling trajectories share: erase prompts, the bank, points of it, velocities to keep."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..bank import record, used_steps
from ..concepts import (
    Concept,
    ErasePrompt,
    erase_prompts,
    relation_nouns,
    require_span,
    substitute,
    vocabulary_of,
    without,
)
from ..concepts.words import Vocabulary, common_words
from ..flow import Flow, Progress
from ..models.attention import AttentionCapture
from ..models.text import TextEmbeds
from ..settings import ErasureConfig
from . import losses
from .base import Level, Prompts, Term

BANK_SEEDS = 1_000_000  # seeds of the bank's noise start here, far from the small numbers that people use for images
PROBES = 32  # points of the bank on which `residue` is measured
REFRESHED = 4  # one trajectory in so many is sampled anew in a refresh


def one_of_each_distance(irrelevant: Sequence[str]) -> list[str]:
    """Three of a concept's irrelevant words: one without relation, one far from it and one of middle distance.

    `Concept` lists its irrelevant words in this order.
    """
    return [irrelevant[i * len(irrelevant) // 3] for i in range(3)]


class TrajectoryMethod:
    """One level on points of the trajectories of erase prompts; see `base.Method`.

    A subclass defines where each erase prompt is sent (`target`), which texts must stay (`preserve_prompts`), and its
    `losses`. The bank holds "erase.row", "erase.t", "erase.x", "erase.own" (v_o under the erase prompt) and "erase."
    plus the name `other` (v_o under the target prompt); for "preserve." it holds the same without the last one. The
    shapes are those of `bank.record`.
    """

    other = "empty"

    def __init__(self, concept: Concept, config: ErasureConfig) -> None:
        self.concept, self.config = concept, config
        self.erase_prompts: list[ErasePrompt] = []
        self.erase: list[tuple[int, int]] = []  # (row of the prompt, row of the same prompt's target)
        self.eta = torch.zeros(0)  # [rows]: η, how far past its target each prompt is sent
        self.preserve: list[int] = []
        self.bank: dict[str, Tensor] = {}
        self.embeds: TextEmbeds  # `use` sets it

    def target(self, prompt: ErasePrompt) -> str:
        """The prompt whose velocity an erase prompt is sent to, see `ErasureConfig.erase_to`.

        Where the prompt asks for a thing beside the concept, that thing must stay: it is what the target asks for.
        """
        if self.config.erase_to == "empty" or prompt.rest:
            return prompt.rest
        if self.concept.kind == "relationship":  # a prompt says no relation only by saying another
            return substitute(prompt.text, prompt.phrase, self.concept.irrelevant[0])
        return without(prompt.text, prompt.phrase)

    @property
    def on_target_paths(self) -> bool:
        """Whether the bank's erase trajectories are sampled under the targets, not under the erase prompts.

        For a relation they are: another relation puts the things elsewhere from the first step on. At points of the
        old relation's trajectory the base's velocity under the new prompt leads to neither picture; and a student that
        has learnt the new one never visits them.
        """
        return self.concept.kind == "relationship" and self.config.erase_to == "rest"

    def preserve_prompts(self) -> Sequence[str]:
        """Texts whose velocities must stay, none by default; `plan` calls it after it has set `erase_prompts`."""
        return ()

    def plan(self, prompts: Prompts, tokenizer: Any, sequence_length: int) -> None:
        """Registers the erase prompts (of the concept and its synonyms), their targets, and the prompts to preserve."""
        concept, config = self.concept, self.config
        require_span(tokenizer, concept.prompt(), concept.phrase, sequence_length)
        vocabulary = vocabulary_of(tokenizer)
        phrases = concept.names() if config.erase_synonyms else (concept.phrase,)
        nouns, count, seed = self._nouns(vocabulary), config.erase_prompts, config.seed
        self.erase_prompts = erase_prompts(
            phrases,
            concept.template,
            concept.kind,
            nouns,
            count,
            seed,
            vocabulary,
            config.shuffle,
            # one vector a word, whatever its capitals: nothing to learn there
            capitals=not vocabulary.closed,
        )
        targets = [prompts.row(self.target(prompt)) for prompt in self.erase_prompts]
        self.erase = [(prompts.row(prompt.text), to) for prompt, to in zip(self.erase_prompts, targets, strict=True)]
        self.preserve = [prompts.row(text) for text in self.preserve_prompts()[: config.preserve_prompts]]
        self.eta = torch.full((len(prompts.texts),), float(config.eta))
        # η = 0 where a thing beside the concept is to stay: extrapolating past the target would erase that thing too
        self.eta[[prompts.row(prompt.text) for prompt in self.erase_prompts if prompt.rest]] = 0.0

    def _nouns(self, vocabulary: Vocabulary) -> list[str]:
        """Unrelated nouns that fill the other places of the prompts."""
        if self.concept.kind in ("entity", "custom"):
            return list(self.concept.irrelevant)
        if self.concept.kind == "relationship" and (nouns := relation_nouns(self.concept.phrase, vocabulary)):
            return nouns
        return [w for w in common_words()["concrete"] if vocabulary(w)][::4]

    def collect(self, flow: Flow, embeds: TextEmbeds, progress: Progress) -> dict[str, Tensor]:
        """Records trajectories of erase and preservation prompts with the teacher's velocities."""
        config = self.config
        steps = used_steps(flow.levels, config.t_min)
        first, size = self.first_seed, 2 * len(self.erase)
        count = size + len(self.preserve)

        def share(before: int, size: int) -> Progress:
            return lambda done, total: progress(before + size * done // total, count)

        bank = self.record_erase(flow, embeds, self.erase, [first + i for i in range(len(self.erase))], share(0, size))
        if self.preserve:
            seeds = [first + 5000 + i for i in range(len(self.preserve))]
            preserve = record(flow, embeds, self.preserve, seeds, {}, steps, share(size, len(self.preserve)))
            bank |= {f"preserve.{name}": value for name, value in preserve.items()}
        return bank

    @property
    def first_seed(self) -> int:
        """Seed of the first trajectory's noise in the bank."""
        return (BANK_SEEDS + 10_000 * self.config.seed) % 2**63  # torch takes seeds below 2 ** 64

    def record_erase(
        self,
        flow: Flow,
        embeds: TextEmbeds,
        pairs: Sequence[tuple[int, int]],
        seeds: Sequence[int],
        progress: Progress,
        student: bool = False,
    ) -> dict[str, Tensor]:
        """The bank's "erase." tensors for some of the erase prompts.

        Args:
            pairs: A part of `erase`: (row of the prompt, row of its target).
            seeds: One for each pair's noise.
            student: Sample the trajectories with the adapter on, always under the erase prompts; otherwise with the
                base, and under the targets where `on_target_paths` says so.
        """
        rows, targets = [row for row, _ in pairs], [target for _, target in pairs]
        steps = used_steps(flow.levels, self.config.t_min)
        if self.on_target_paths and not student:
            points = record(flow, embeds, targets, seeds, {self.other: rows}, steps, progress)
            row = torch.tensor(rows).repeat_interleave(steps)
            points = {**points, "row": row, "own": points[self.other], self.other: points["own"]}
        else:
            points = record(flow, embeds, rows, seeds, {self.other: targets}, steps, progress, student)
        return {f"erase.{name}": value for name, value in points.items()}

    def use(self, bank: dict[str, Tensor], embeds: TextEmbeds) -> None:
        """See `base.Method`."""
        self.bank, self.embeds = bank, embeds

    def refresh(self, flow: Flow, step: int, progress: Progress) -> dict[str, Tensor]:
        """Samples one in REFRESHED erase trajectories again with the student, every `refresh_every` steps."""
        every, count = self.config.refresh_every, len(self.erase)
        if not every or step == 0 or step % every:
            return {}
        draw = random.Random(f"refresh:{self.config.seed}:{step}")
        picked = draw.sample(range(count), -(-count // REFRESHED))
        seeds = [draw.getrandbits(48) for _ in picked]
        fresh = self.record_erase(flow, self.embeds, [self.erase[i] for i in picked], seeds, progress, student=True)
        points = torch.arange(len(self.bank["erase.row"])).view(count, -1)[picked].flatten()
        changed = {name: self.bank[name].index_copy(0, points, value) for name, value in fresh.items()}
        self.bank = {**self.bank, **changed}
        return changed

    def levels(self) -> tuple[Level, ...]:
        """One level."""
        return (Level("erase", self.config.lr_erase),)

    def _draw(self, kind: str, count: int, generator: torch.Generator, flow: Flow) -> dict[str, Tensor]:
        """This process's share of `count` random points of the bank; a few more where shares would not be equal."""
        picked = torch.randint(len(self.bank[f"{kind}.row"]), (flow.group.whole(count),), generator=generator)
        return self._points(kind, flow.group.share(picked), flow.device)

    def _points(self, kind: str, picked: Tensor, device: torch.device) -> dict[str, Tensor]:
        """The bank's points with the numbers `picked`, by name without the kind."""
        names = [name for name in self.bank if name.startswith(f"{kind}.")]
        point = {name.split(".")[1]: self.bank[name][picked] for name in names}
        return {name: value if name == "row" else value.to(device).float() for name, value in point.items()}

    def _erase_point(self, flow: Flow, generator: torch.Generator) -> tuple[dict[str, Tensor], float]:
        """A batch of points on erase trajectories, and the adapter's strength for it."""
        point = self._draw("erase", self.config.batch_erase, generator, flow)
        return point, float(torch.rand((), generator=generator)) if self.config.random_strength else 1.0

    def _destination(self, point: dict[str, Tensor], strength: float) -> Tensor:
        """The velocities that the student should have at these points, [B, N, C]."""
        eta = self.eta[point["row"]].to(point["own"])[:, None, None]
        return losses.negative_guidance_target(point["own"], point["empty"], eta, strength)

    def residue(self, flow: Flow) -> float:
        """‖v_θ − destination‖² / ‖v_o(c) − destination‖² on PROBES points spread over the bank's erase trajectories."""
        total = len(self.bank["erase.row"])
        picked = torch.linspace(0, total - 1, min(PROBES, total)).long()
        left = whole = 0.0
        for part in picked.split(self.config.batch_erase):  # no more at a time than a training step takes
            point = self._points("erase", part, flow.device)
            goal = self._destination(point, 1.0)
            with torch.no_grad():
                student = self._student(flow, point)
            left += float((student.float() - goal).square().sum())
            whole += float((point["own"] - goal).square().sum())
        return left / max(whole, 1e-12)

    def _student(
        self, flow: Flow, point: dict[str, Tensor], strength: float = 1.0, capture: AttentionCapture | None = None
    ) -> Tensor:
        """v_θ at the points, under their own prompts."""
        with flow.strength(strength):
            return flow.student(point["x"], point["t"], self.embeds[point["row"]], capture=capture)

    def _retention(self, flow: Flow, generator: torch.Generator) -> list[Term]:
        """Velocity matching on the preservation prompts; no term where there are none or its weight is 0."""
        config = self.config
        if not (self.preserve and config.weight_lora > 0):
            return []
        point = self._draw("preserve", config.batch_preserve, generator, flow)
        return [Term("lora", losses.velocity_matching(self._student(flow, point), point["own"]), config.weight_lora)]
