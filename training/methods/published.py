"""EraseAnything on its authors' schedule, for the cost benchmark: the same terms without a bank, anew each step."""

from __future__ import annotations

import torch
from torch import Tensor

from ..flow import Flow, Progress
from ..models.attention import AttentionCapture
from ..models.sampling import trajectory
from ..models.text import TextEmbeds
from . import losses
from .base import Term
from .eraseanything import EraseAnything


class PublishedSchedule(EraseAnything):
    """A pair of steps costs 142 passes without gradient and 3 with gradient and backward, on a `Flow` of 28 steps.

    Erase: the student samples the concept's prompt to the end (28 passes), the teacher computes v_o(c) and v_o(∅) at
    one point of that trajectory (2), and L_esd + L_attn takes 1 pass with gradient. Preserve: the teacher samples the
    prompts of the synonym and of three irrelevant words to the end (4 × 28), L_lora is flow matching on one of these
    pictures (1 with gradient), and L_rsc takes a whole pass (1 with gradient). The number of passes is that of the
    authors' code. Formulas, teacher and token spans are the pack's, which favours this schedule. Batch sizes, refresh
    and random strength are not used; `weight_rsc` must not be 0.
    """

    def collect(self, flow: Flow, embeds: TextEmbeds, progress: Progress) -> dict[str, Tensor]:
        """An empty bank: this schedule stores nothing between steps."""
        return {}

    def _sampled(
        self, flow: Flow, noise: Tensor, row: int, teacher: bool, capture: AttentionCapture | None = None
    ) -> list[Tensor]:
        """The latents before each step and after the last; `capture` records the first step."""
        points: list[Tensor] = []
        run = flow.teacher if teacher else flow.student

        def predict(latents: Tensor, t: float) -> Tensor:
            points.append(latents)
            return run(latents, t, self.embeds[row], capture=capture if len(points) == 1 else None)

        last = trajectory(predict, noise, flow.levels)
        return [*points, last]

    def _noise(self, flow: Flow, generator: torch.Generator) -> Tensor:
        tokens = flow.grid[0] * flow.grid[1]
        return torch.randn(1, tokens, 4 * flow.channels, generator=generator).to(flow.device)

    def _erase(self, flow: Flow, generator: torch.Generator) -> list[Term]:
        config = self.config
        row, empty = self.erase[int(torch.randint(len(self.erase), (1,), generator=generator))]
        times = [step for step, t in enumerate(flow.levels[:-1].tolist()) if t > config.t_min]
        step = times[int(torch.randint(len(times), (1,), generator=generator))]
        x = self._sampled(flow, self._noise(flow, generator), row, teacher=False)[step]
        t = flow.levels[step]
        own, none = (flow.teacher(x, t, self.embeds[prompt]) for prompt in (row, empty))
        capture = self._capture(flow, torch.tensor([row]))
        student = flow.student(x, t, self.embeds[row], capture=capture)
        target = losses.negative_guidance_target(own, none, float(self.eta[row]))
        return [
            Term("esd", losses.velocity_matching(student, target), config.weight_esd),
            Term("attn", losses.attention_mass(capture.columns), config.weight_attn),
        ]

    def _preserve(self, flow: Flow, generator: torch.Generator) -> list[Term]:
        config = self.config
        row, synonym, words = self.contrast[int(torch.randint(len(self.contrast), (1,), generator=generator))]
        noise, features, pictures = self._noise(flow, generator), [], []
        for prompt in (synonym, *words):
            capture = self._capture(flow, torch.tensor([prompt]))
            pictures.append(self._sampled(flow, noise, prompt, teacher=True, capture=capture)[-1])
            features.append(losses.attention_features(capture.columns))
        t = torch.rand((), generator=generator).clamp_min(config.t_min).to(flow.device)
        fresh = self._noise(flow, generator)
        x = (1 - t) * pictures[1] + t * fresh
        matched = flow.student(x, t, self.embeds[words[0]])
        capture = self._capture(flow, torch.tensor([row]))
        flow.student(noise, 1.0, self.embeds[row], capture=capture)
        own = losses.attention_features(capture.columns)
        contrast = losses.reverse_self_contrastive(own, features[0], torch.stack(features[1:], dim=1), config.tau)
        return [
            Term("lora", losses.velocity_matching(matched, fresh - pictures[1]), config.weight_lora),
            Term("rsc", contrast, config.weight_rsc),
        ]
