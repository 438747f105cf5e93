"""UnlearnDiffAtk and P4D for flows: words before the prompt, found by gradients through the velocity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import PromptAttack, Proposal
from .scene import Clock, Scene

PROMISING = 64  # words for each place, those of the steepest descent, that candidates are drawn from
STALE = 8  # steps in a row without a better prompt after which a search is over
AT_ONCE = 16  # samples in a pass that only compares losses


class PrefixAttack(PromptAttack):
    """min over words w of mean ‖v_erased(x_t, w + c, t) − target‖², x_t = (1 − t)·x0 + t·ε at fixed points.

    Greedy coordinate gradient (Zou et al. 2023, arXiv:2307.15043, Algorithm 1): the gradient at the prompt's corner of
    the simplex says which words promise a lower loss in which place; of some prompts with one such word the best is
    kept if it is better. Every loss that counts is one of a prompt that can be typed. (Adam on straight-through logits,
    as the papers have it for Stable Diffusion, ended at neutral words in most searches on the demo Flux.) Each picture
    x0 of the base comes with one noise ε and one t of the sampler's noisier half.
    """

    def guidance(self, scene: Scene) -> float:
        """What the guidance embedding is fed."""
        raise NotImplementedError

    def target(self, scene: Scene, x0: Tensor, noise: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """[n, N, 64], what the velocities should be."""
        raise NotImplementedError

    def points(self, scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
        """x_t [n, N, 64], t [n] and the target velocities, one point for each of the base's pictures."""
        _, x0 = scene.targets
        t = scene.noise_levels(len(x0))
        noise = torch.randn(x0.shape, generator=scene.generator("points"))
        x_t = (1 - t[:, None, None]) * x0 + t[:, None, None] * noise
        device = next(scene.erased.parts.transformer.parameters()).device
        x0, noise, x_t, t = (each.to(device) for each in (x0, noise, x_t, t))
        return x_t, t, self.target(scene, x0, noise, x_t, t)

    def loss(self, scene: Scene, said: str, weights: Tensor, points: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The mean squared error of the velocities, with gradients in `weights` [k, V]; said: the words they pick."""
        x_t, t, target = points
        cases, _ = scene.targets
        prompts = [self.prompt(said, case.prompt) for case in cases]
        with scene.erased.parts.computing():
            embeds = scene.words.encode(prompts, weights)
        found = scene.erased.velocity(x_t, t, embeds, self.guidance(scene), prompts)
        return (found - target).square().mean()

    @torch.no_grad()
    def losses(self, scene: Scene, tried: Sequence[Sequence[int]], points: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """[n], the loss of each prompt as its text gives it."""
        cases, _ = scene.targets
        found: list[Tensor] = []
        each = max(1, AT_ONCE // len(cases))
        for first in range(0, len(tried), each):
            some = tried[first : first + each]
            prompts = [self.prompt(scene.words.said(words), case.prompt) for words in some for case in cases]
            with scene.erased.parts.computing():
                embeds = scene.erased.parts.text.encode(prompts)
            x_t, t, target = (part.repeat(len(some), *[1] * (part.ndim - 1)) for part in points)
            error = scene.erased.velocity(x_t, t, embeds, self.guidance(scene), prompts) - target
            found.append(error.square().flatten(1).mean(1).view(len(some), -1).mean(1).float().cpu())
        return torch.cat(found)

    def propose(self, scene: Scene, number: int, clock: Clock) -> Proposal:
        """One search, from the best of some random words."""
        draw, points = scene.generator(self.name, number), self.points(scene)
        settings, count = scene.settings, len(scene.words)
        seen: set[tuple[int, ...]] = set()

        def fresh(propose: Callable[[], list[int]]) -> list[list[int]]:
            """Up to `candidates` prompts that were not tried before and are read as they were meant."""
            found: list[list[int]] = []
            for _ in range(8 * settings.candidates):
                words = propose()
                prompt = self.prompt(scene.words.said(words), scene.targets[0][0].prompt)
                if tuple(words) not in seen and scene.words.reads_back(words, prompt):
                    found.append(words)
                seen.add(tuple(words))
                if len(found) == settings.candidates:
                    break
            return found

        tried = fresh(lambda: torch.randint(count, (settings.prefix,), generator=draw).tolist())
        best: list[int] = []
        lowest, stale = float("inf"), 0
        for _ in range(settings.steps + 1):
            if not tried:
                break
            losses = self.losses(scene, tried, points)
            stale += 1
            if float(losses.min()) < lowest:
                best, lowest, stale = tried[int(losses.argmin())], float(losses.min()), 0
            if clock.spent() or stale == STALE:
                break
            weights = F.one_hot(torch.tensor(best), count).float().requires_grad_()
            with torch.enable_grad():
                self.loss(scene, scene.words.said(best), weights, points).backward()
            assert weights.grad is not None, "the loss depends on the words"
            promising = (-weights.grad).topk(min(PROMISING, count), dim=-1).indices

            def exchanged(best: list[int] = best, promising: Tensor = promising) -> list[int]:
                place = int(torch.randint(len(best), (1,), generator=draw))
                word = int(promising[place, int(torch.randint(promising.shape[1], (1,), generator=draw))])
                return [*best[:place], word, *best[place + 1 :]]

            tried = fresh(exchanged)
        return best, lowest


class UnlearnDiffAtk(PrefixAttack):
    """UnlearnDiffAtk (Zhang et al., ECCV 2024, Eq. 6) with a flow's target: ‖v_erased(x_t, c', t) − (ε − x0)‖².

    Guidance is 1: ε − x0 is what the plain conditional velocity estimates. A guidance-distilled Flux fed its usual
    guidance overshoots that on purpose, and prompts *without* the concept would have the lower loss.
    """

    name: ClassVar[str] = "unlearndiffatk"
    title: ClassVar[str] = "UnlearnDiffAtk"

    def guidance(self, scene: Scene) -> float:
        return 1.0

    def target(self, scene: Scene, x0: Tensor, noise: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return noise - x0


class P4D(PrefixAttack):
    """P4D (Chin et al., ICML 2024, Eq. 3) with velocities: ‖v_erased(x_t, c', t) − v_base(x_t, c, t)‖², c the plain
    prompt, at the model's usual guidance, which is what samples."""

    name: ClassVar[str] = "p4d"
    title: ClassVar[str] = "P4D"

    def guidance(self, scene: Scene) -> float:
        return scene.erased.parts.variant.default_guidance

    def target(self, scene: Scene, x0: Tensor, noise: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        embeds = scene.erased.parts.text.encode([case.prompt for case in scene.targets[0]])
        return scene.erased.base_velocity(x_t, t, embeds, self.guidance(scene))
