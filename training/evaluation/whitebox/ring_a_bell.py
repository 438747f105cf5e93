"""Ring-A-Bell (Tsai et al., ICLR 2024): words that the text encoders read like the prompt plus more of the concept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ...concepts import substitute
from ...models.text import TextEmbeds
from ..cases import Case
from .base import PromptAttack, Proposal
from .scene import Clock, Scene

ETA = 1.0  # strength of the concept vector (the paper's η)
POPULATION = 64
PARENTS = 16  # the best of a generation, which go on as they are and have all children
MUTATION = 0.25  # chance of each word of a child to become another


class RingABell(PromptAttack):
    """Words in the prompt's place; only the encoders f are asked, so that it is the same for every erasure of them.

    Concept vector (Eq. 2): ĉ = mean of f(with the concept) − f(with something unrelated in its place). Target (Eq. 3):
    f(P) + η·ĉ. A genetic search finds as many words as P has T5 tokens, least ‖f(P̂) − target‖² (Eq. 4) over T5's
    outputs and CLIP's pooled output, each in units of its target's square. P is the first prompt that is learnt from:
    its picture is asked for with every seed.
    """

    name: ClassVar[str] = "ring-a-bell"
    title: ClassVar[str] = "Ring-A-Bell"
    place: ClassVar[str] = "instead"

    def words_of(self, scene: Scene) -> int:
        text = scene.erased.parts.text
        return len(text.tokenizer_2(scene.taught[0].prompt, add_special_tokens=False).input_ids)

    def prompt(self, said: str, plain: str) -> str:
        return said

    def cases(self, scene: Scene, cases: Sequence[Case]) -> list[Case]:
        return [dataclasses.replace(scene.taught[0], seed=case.seed) for case in cases]

    def target(self, scene: Scene) -> TextEmbeds:
        """f(P) + η·ĉ, one row."""
        encode, plain = scene.erased.parts.text.encode, scene.taught[0].prompt
        with_it = encode(list(dict.fromkeys(case.prompt for case in scene.taught)))
        pairs = [
            encode([substitute(prompt, scene.phrase, word) for word in scene.unrelated])
            for prompt in dict.fromkeys(case.prompt for case in scene.taught)
        ]
        own = encode(plain)
        return TextEmbeds(
            *(
                getattr(own, part)
                + ETA
                * torch.cat([getattr(with_it[row], part) - getattr(pair, part) for row, pair in enumerate(pairs)]).mean(
                    0, keepdim=True
                )
                for part in ("t5", "pooled")
            )
        )

    def distance(self, scene: Scene, prompts: Sequence[str], target: TextEmbeds) -> Tensor:
        """[n]: how far the prompts are from the target, 0 where they are read as it."""
        found = scene.erased.parts.text.encode(prompts)
        t5 = (found.t5 - target.t5).square().mean((1, 2)) / target.t5.square().mean()
        return t5 + (found.pooled - target.pooled).square().mean(1) / target.pooled.square().mean()

    def propose(self, scene: Scene, number: int, clock: Clock) -> Proposal:
        """One genetic search from random words: the best go on, their children cross over at one place and mutate."""
        draw, target, total, places = (
            scene.generator(self.name, number),
            self.target(scene),
            len(scene.words),
            self.words_of(scene),
        )
        people = torch.randint(total, (POPULATION, places), generator=draw)
        far = self._far(scene, people, target)
        for _ in range(scene.settings.steps):
            order = far.argsort(stable=True)[:PARENTS]
            parents, known = people[order], far[order]
            pair = torch.randint(PARENTS, (2, POPULATION - PARENTS), generator=draw)
            cut = torch.randint(places + 1, (POPULATION - PARENTS, 1), generator=draw)
            children = torch.where(torch.arange(places) < cut, parents[pair[0]], parents[pair[1]])
            other = torch.randint(total, children.shape, generator=draw)
            children = torch.where(torch.rand(children.shape, generator=draw) < MUTATION, other, children)
            people = torch.cat([parents, children])
            far = torch.cat([known, self._far(scene, children, target)])
            if clock.spent():
                break
        best = int(far.argmin())
        return people[best].tolist(), float(far[best])

    def _far(self, scene: Scene, people: Tensor, target: TextEmbeds) -> Tensor:
        said = [scene.words.said(each) for each in people.tolist()]
        return self.distance(scene, said, target).float().cpu()
