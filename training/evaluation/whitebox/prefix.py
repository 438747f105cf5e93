"""UnlearnDiffAtk and P4D for flows: words before the prompt, found by gradients through the velocity."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .base import PromptAttack, Proposal
from .scene import Clock, Scene
from .words import straight_through

LEARNING_RATE = 0.1
NOISE = 0.3  # scale of the Gumbel noise on the logits: without it most searches end at the first neutral words


class PrefixAttack(PromptAttack):
    """min over words w of mean ‖v_erased(x_t, w + c, t) − target‖², x_t = (1 − t)·x0 + t·ε at fixed points.

    Adam on logits [k, V] of the words, straight through to real words (`straight_through`), so that every step's loss
    is that of a prompt that can be typed: the best prompt that was visited is the try's. Each picture x0 of the base
    comes with one noise ε and one t of the sampler's noisier half.
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

    def propose(self, scene: Scene, number: int, clock: Clock) -> Proposal:
        """One search from random logits."""
        draw, points = scene.generator(self.name, number), self.points(scene)
        shape = (scene.settings.prefix, len(scene.words))
        logits = (0.1 * torch.randn(shape, generator=draw)).requires_grad_()
        optimiser = torch.optim.Adam([logits], lr=LEARNING_RATE)
        best: list[int] = []
        lowest = float("inf")
        for _ in range(scene.settings.steps):
            uniform = torch.rand(shape, generator=draw).clamp(1e-9, 1 - 1e-7)
            with torch.enable_grad():
                weights, picked = straight_through(logits - NOISE * torch.log(-torch.log(uniform)))
                loss = self.loss(scene, scene.words.said(picked), weights, points)
                optimiser.zero_grad()
                loss.backward()
            optimiser.step()
            reached = float(loss.detach())
            first = self.prompt(scene.words.said(picked), scene.targets[0][0].prompt)
            if not best or (reached < lowest and scene.words.reads_back(picked, first)):
                best, lowest = picked, reached
            if clock.spent():
                break
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
