"""EraseAnything (Gao et al., ICML 2025): erase and preserve as two alternating levels on the text stream's q and k.

Lower level: L_esd + L_attn. Upper level: velocity matching on prompts without the concept (L_lora) and, where its
weight is not 0, the reverse self-contrastive loss on attention maps (L_rsc). The teacher is the base itself (adapter
off) and comes from a bank. With `ErasureConfig.bilevel` off it is the paper's plain multi-objective variant: one update
on the sum of all terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..concepts import Concept, span_mask, substitute, token_spans
from ..flow import Flow, Progress
from ..models.attention import AttentionCapture
from ..models.sampling import initial_noise
from ..models.text import TextEmbeds
from ..settings import ErasureConfig
from . import losses
from .base import Level, Prompts, Term
from .trajectories import TrajectoryMethod, one_of_each_distance

CONTRAST_PROMPTS = 8  # prompts, each with its own noise, that L_rsc chooses among


class EraseAnything(TrajectoryMethod):
    """The method for one concept; see `base.Method`."""

    def __init__(self, concept: Concept, config: ErasureConfig) -> None:
        super().__init__(concept, config)
        self.masks = torch.zeros(0)  # [rows, L]: the concept's tokens in each prompt; zero where it is absent
        self.contrast: list[tuple[int, int, list[int]]] = []  # rows of: the concept, a synonym, the irrelevant words

    def preserve_prompts(self) -> Sequence[str]:
        """The concept's preservation prompts."""
        return self.concept.preserve

    def plan(self, prompts: Prompts, tokenizer: Any, sequence_length: int) -> None:
        """Registers erase, preservation and contrast prompts, and locates the concept's tokens in each."""
        super().plan(prompts, tokenizer, sequence_length)
        concept = self.concept
        spans: dict[int, Tensor] = {}

        def locate(text: str, phrase: str) -> int:
            row = prompts.row(text)
            found = span_mask(token_spans(tokenizer, text, phrase, sequence_length), sequence_length)
            spans[row] = spans.get(row, torch.zeros_like(found)) | found
            return row

        for prompt in self.erase_prompts:
            locate(prompt.text, prompt.phrase)
        if self.config.weight_rsc > 0:
            words = one_of_each_distance(concept.irrelevant)
            own = [prompt.text for prompt in self.erase_prompts if prompt.phrase == concept.phrase][:CONTRAST_PROMPTS]
            for number, text in enumerate(own):
                # Where the concept has no synonym, features move away from the base's own features of the concept.
                other = concept.synonyms[number % len(concept.synonyms)] if concept.synonyms else concept.phrase
                self.contrast.append(
                    (
                        locate(text, concept.phrase),
                        locate(substitute(text, concept.phrase, other), other),
                        [locate(substitute(text, concept.phrase, word), word) for word in words],
                    )
                )
        self.masks = torch.stack(
            [spans.get(row, torch.zeros(sequence_length)).float() for row in range(len(prompts.texts))]
        )

    def _capture(self, flow: Flow, rows: Tensor) -> AttentionCapture:
        blocks = self.config.capture_blocks or range(flow.double_blocks)
        return AttentionCapture(self.masks[rows].to(flow.device), list(blocks))

    def _features(self, flow: Flow, noise: Tensor, rows: list[int], teacher: bool) -> Tensor:
        """Attention features [B, Q] of the concept's tokens at pure noise (t = 1), by a pass that ends early."""
        capture = self._capture(flow, torch.tensor(rows))
        run = flow.teacher if teacher else flow.student
        last = max(self.config.capture_blocks or (flow.double_blocks - 1,))
        run(noise, torch.ones(len(rows)), self.embeds[rows], capture=capture, stop_after_block=last)
        return losses.attention_features(capture.columns)

    def collect(self, flow: Flow, embeds: TextEmbeds, progress: Progress) -> dict[str, Tensor]:
        """Records the trajectories (see TrajectoryMethod) and the teacher's attention features for L_rsc."""
        bank = super().collect(flow, embeds, progress)
        self.embeds = embeds
        if self.contrast:
            seeds = [self.first_seed + 9000 + i for i in range(len(self.contrast))]
            noise = initial_noise(seeds, flow.grid, flow.channels)
            bank["contrast.noise"] = noise
            bank["contrast.synonym"] = self._features(flow, noise, [syn for _, syn, _ in self.contrast], True).cpu()
            words = [
                self._features(flow, noise, [rows[k] for _, _, rows in self.contrast], True).cpu()
                for k in range(len(self.contrast[0][2]))
            ]
            bank["contrast.irrelevant"] = torch.stack(words, dim=1)
        return bank

    def levels(self) -> tuple[Level, ...]:
        """Erase, then preserve; erase alone where nothing is preserved or where `bilevel` is off."""
        erase = Level("erase", self.config.lr_erase)
        keep = (self.preserve and self.config.weight_lora > 0) or (self.contrast and self.config.weight_rsc > 0)
        return (erase, Level("preserve", self.config.lr_preserve)) if keep and self.config.bilevel else (erase,)

    def losses(self, level: str, flow: Flow, generator: torch.Generator) -> list[Term]:
        """The level's terms on random points of the bank."""
        if not self.config.bilevel:
            return [*self._erase(flow, generator), *self._preserve(flow, generator)]
        return self._erase(flow, generator) if level == "erase" else self._preserve(flow, generator)

    def _erase(self, flow: Flow, generator: torch.Generator) -> list[Term]:
        config = self.config
        point, strength = self._erase_point(flow, generator)
        capture = self._capture(flow, point["row"]) if config.weight_attn > 0 else None
        student = self._student(flow, point, strength, capture)
        value = losses.velocity_matching(student, self._destination(point, strength))
        terms = [Term("esd", value, config.weight_esd)]
        if capture is not None:
            terms.append(Term("attn", losses.attention_mass(capture.columns), config.weight_attn * strength))
        return terms

    def _preserve(self, flow: Flow, generator: torch.Generator) -> list[Term]:
        config, terms = self.config, self._retention(flow, generator)
        if self.contrast and config.weight_rsc > 0:
            number = int(torch.randint(len(self.contrast), (1,), generator=generator))
            one = slice(number, number + 1)
            noise = self.bank["contrast.noise"][one].to(flow.device)
            student = self._features(flow, noise, [self.contrast[number][0]], teacher=False)
            synonym, words = (self.bank[f"contrast.{n}"][one].to(flow.device) for n in ("synonym", "irrelevant"))
            term = losses.reverse_self_contrastive(student, synonym, words, config.tau)
            terms.append(Term("rsc", term, config.weight_rsc))
        return terms
