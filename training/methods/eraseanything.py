"""EraseAnything (Gao et al., ICML 2025): erase and preserve as two alternating levels on the text stream's q and k.

Lower level: L_esd + L_attn. Upper level: velocity matching on prompts without the concept (L_lora) + the reverse
self-contrastive loss on attention maps (L_rsc). The teacher is the base itself (adapter off) and comes from a bank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..bank import record, used_steps
from ..concepts import Concept, erase_prompts, require_span, span_mask, substitute, token_spans, vocabulary_of
from ..concepts.words import common_words
from ..config import ErasureConfig
from ..flow import Flow, Progress
from ..flux.attention import AttentionCapture
from ..flux.sampling import initial_noise
from ..flux.text import TextEmbeds
from . import losses
from .base import Level, Prompts, Term

CONTRAST_PROMPTS = 8  # prompts and noises that L_rsc draws from
BANK_SEEDS = 1_000_000  # seeds of the bank's noise start here, away from the small numbers people use for images


class EraseAnything:
    """The method for one concept; see `base.Method`."""

    def __init__(self, concept: Concept, config: ErasureConfig) -> None:
        self.concept, self.config = concept, config
        self.erase: list[tuple[int, int]] = []  # (row of the prompt, row of the same prompt's target)
        self.preserve: list[int] = []
        self.masks = torch.zeros(0)  # [rows, L]: the concept's tokens in each prompt; zero where it is absent
        self.contrast: list[tuple[int, int, list[int]]] = []  # rows of: the concept, a synonym, the irrelevant words
        self.empty = 0
        self.bank: dict[str, Tensor] = {}
        self.embeds: TextEmbeds | None = None

    def plan(self, prompts: Prompts, tokenizer: Any, sequence_length: int) -> None:
        """Erase prompts (concept and synonyms, many settings, a third shuffled), preservation and contrast prompts."""
        concept, config = self.concept, self.config
        vocabulary = vocabulary_of(tokenizer)
        require_span(tokenizer, concept.prompt(), concept.phrase, sequence_length)
        spans: dict[int, Tensor] = {}

        def locate(text: str, phrase: str) -> int:
            row = prompts.row(text)
            found = span_mask(token_spans(tokenizer, text, phrase, sequence_length), sequence_length)
            spans[row] = spans.get(row, torch.zeros_like(found)) | found
            return row

        phrases = concept.names() if config.erase_synonyms else (concept.phrase,)
        nouns = self._nouns(vocabulary)
        self.empty = prompts.row("")
        count, seed = config.erase_prompts, config.seed
        wanted = erase_prompts(phrases, concept.template, concept.kind, nouns, count, seed, vocabulary, config.shuffle)
        self.erase = [(locate(text, phrase), self.empty) for text, phrase in wanted]
        self.preserve = [prompts.row(text) for text in concept.preserve[: config.preserve_prompts]]
        if config.weight_rsc > 0:
            own = [text for text, phrase in wanted if phrase == concept.phrase][:CONTRAST_PROMPTS]
            for number, text in enumerate(own):
                # without a synonym: away from what the base itself makes of the concept
                other = concept.synonyms[number % len(concept.synonyms)] if concept.synonyms else concept.phrase
                words = [concept.irrelevant[i * len(concept.irrelevant) // 3] for i in range(3)]
                self.contrast.append((
                    locate(text, concept.phrase),
                    locate(substitute(text, concept.phrase, other), other),
                    [locate(substitute(text, concept.phrase, word), word) for word in words],
                ))  # fmt: skip
        self.masks = torch.stack(
            [spans.get(row, torch.zeros(sequence_length)).float() for row in range(len(prompts.texts))]
        )

    def _nouns(self, vocabulary: Any) -> list[str]:
        """Unrelated nouns for the other places in prompts about a style or a relation."""
        if self.concept.kind in ("entity", "custom"):
            return list(self.concept.irrelevant)
        return [w for w in common_words()["concrete"] if vocabulary(w)][::4]

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
        """Trajectories of erase and preservation prompts with the teacher's velocities, and the contrast's features."""
        config, bank = self.config, {}
        self.embeds = embeds
        steps = used_steps(flow.levels, config.t_min)
        seed = BANK_SEEDS + 10_000 * config.seed
        count = len(self.erase) * 2 + len(self.preserve)

        def share(before: int, size: int) -> Progress:
            return lambda done, total: progress(before + size * done // total, count)

        rows = [row for row, _ in self.erase]
        empty = {"empty": [target for _, target in self.erase]}
        erase = record(flow, embeds, rows, [seed + i for i in range(len(rows))], empty, steps, share(0, 2 * len(rows)))
        bank |= {f"erase.{name}": value for name, value in erase.items()}
        if self.preserve:
            seeds = [seed + 5000 + i for i in range(len(self.preserve))]
            keep = record(flow, embeds, self.preserve, seeds, {}, steps, share(2 * len(rows), len(self.preserve)))
            bank |= {f"preserve.{name}": value for name, value in keep.items()}
        if self.contrast:
            noise = initial_noise([seed + 9000 + i for i in range(len(self.contrast))], flow.grid, flow.channels)
            bank["contrast.noise"] = noise
            bank["contrast.synonym"] = self._features(flow, noise, [syn for _, syn, _ in self.contrast], True).cpu()
            words = [
                self._features(flow, noise, [rows[k] for _, _, rows in self.contrast], True).cpu()
                for k in range(len(self.contrast[0][2]))
            ]
            bank["contrast.irrelevant"] = torch.stack(words, dim=1)
        return bank

    def use(self, bank: dict[str, Tensor], embeds: TextEmbeds) -> None:
        """Takes the bank."""
        self.bank, self.embeds = bank, embeds

    def levels(self) -> tuple[Level, ...]:
        """Erase, then preserve; the latter only where there is something to preserve."""
        erase = Level("erase", self.config.lr_erase)
        keep = (self.preserve and self.config.weight_lora > 0) or (self.contrast and self.config.weight_rsc > 0)
        return (erase, Level("preserve", self.config.lr_preserve)) if keep else (erase,)

    def losses(self, level: str, flow: Flow, generator: torch.Generator) -> list[Term]:
        """One level's terms on a fresh draw from the bank."""
        return self._erase(flow, generator) if level == "erase" else self._preserve(flow, generator)

    def _draw(self, kind: str, count: int, generator: torch.Generator, device: torch.device) -> dict[str, Tensor]:
        """`count` points of the bank's trajectories of this kind."""
        total = len(self.bank[f"{kind}.row"])
        picked = torch.randint(total, (count,), generator=generator)
        names = [name for name in self.bank if name.startswith(f"{kind}.")]
        point = {name.split(".")[1]: self.bank[name][picked] for name in names}
        return {name: value if name == "row" else value.to(device).float() for name, value in point.items()}

    def _erase(self, flow: Flow, generator: torch.Generator) -> list[Term]:
        config = self.config
        point = self._draw("erase", config.batch_erase, generator, flow.device)
        strength = float(torch.rand((), generator=generator)) if config.random_strength else 1.0
        capture = self._capture(flow, point["row"]) if config.weight_attn > 0 else None
        with flow.strength(strength):
            student = flow.student(point["x"], point["t"], self.embeds[point["row"]], capture=capture)
        target = losses.negative_guidance_target(point["own"], point["empty"], config.eta, strength)
        terms = [Term("esd", losses.velocity_matching(student, target), config.weight_esd)]
        if capture is not None:
            terms.append(Term("attn", losses.attention_mass(capture.columns), config.weight_attn * strength))
        return terms

    def _preserve(self, flow: Flow, generator: torch.Generator) -> list[Term]:
        config, terms = self.config, []
        if self.preserve and config.weight_lora > 0:
            point = self._draw("preserve", config.batch_preserve, generator, flow.device)
            student = flow.student(point["x"], point["t"], self.embeds[point["row"]])
            terms.append(Term("lora", losses.velocity_matching(student, point["own"]), config.weight_lora))
        if self.contrast and config.weight_rsc > 0:
            number = int(torch.randint(len(self.contrast), (1,), generator=generator))
            one = slice(number, number + 1)
            noise = self.bank["contrast.noise"][one].to(flow.device)
            student = self._features(flow, noise, [self.contrast[number][0]], teacher=False)
            synonym, words = (self.bank[f"contrast.{n}"][one].to(flow.device) for n in ("synonym", "irrelevant"))
            term = losses.reverse_self_contrastive(student, synonym, words, config.tau)
            terms.append(Term("rsc", term, config.weight_rsc))
        return terms
