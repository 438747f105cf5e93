"""The protocol of white-box attacks, and what those share that end in a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import torch

from ..cases import Case
from .scene import Clock, Scene, count
from .settings import WhiteBox

Proposal = tuple[list[int], float | None]  # words by their numbers, and the loss that they reach; None: without one


class Attack(Protocol):
    """An attack: its name in settings and files, its title for people.

    Results are JSON: "before", "after", "control" and "base" are counts {"hits", "images", "share", "interval"} on the
    same seeds (the plain prompt on the erased model, the attack, its control, the plain prompt on the base);
    "prompts" are those that brought the concept back, each with its seeds; "pictures" are some of the attack's (see
    `Scene.pictured`); "seconds" is the time that it took.
    """

    name: ClassVar[str]
    title: ClassVar[str]

    def parts(self, settings: WhiteBox) -> int:
        """How often `run` tells of progress."""

    def run(self, scene: Scene) -> dict[str, Any]:
        """Makes what the scene's store lacks of the attack; its result. The model is left as it was."""


class PromptAttack:
    """An attack that proposes words; the judge chooses among its tries, and other seeds measure the choice.

    The control proposes as many random words for the same place, and is chosen and measured in the same way.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    place: ClassVar[str] = "before"  # where the words go; attacks with equal places and lengths share their control

    def propose(self, scene: Scene, number: int, clock: Clock) -> Proposal:
        """One try. Stops early where the clock is spent."""
        raise NotImplementedError

    def words_of(self, scene: Scene) -> int:
        """How many words a try has."""
        return scene.settings.prefix

    def prompt(self, said: str, plain: str) -> str:
        """The prompt with the words in it, from the plain prompt."""
        return f"{said} {plain}"

    def cases(self, scene: Scene, cases: Sequence[Case]) -> list[Case]:
        """The cases as this attack asks for them: some seeds, with a prompt and a content each."""
        return list(cases)

    def parts(self, settings: WhiteBox) -> int:
        """See Attack."""
        return 1 + 2 * (settings.tries + 1)

    def run(self, scene: Scene) -> dict[str, Any]:
        """See Attack. Beside it "tries" and "control_tries": words, loss and what the judge counted of each."""
        before = scene.before()
        own, tries = self._best(scene, self.name, self.propose)
        control, control_tries = self._best(scene, f"control-{self.place}-{self.words_of(scene)}", self._random)
        every = (before, own, control, *tries, *control_tries)
        return {
            "attack": self.name,
            "title": self.title,
            "before": before["before"],
            "after": own["count"],
            "control": control["count"],
            "base": before["base"],
            "prompts": own["prompts"],
            "pictures": own.get("pictures", []),
            "control_prompts": control["prompts"],
            "tries": [_without_seconds(each) for each in tries],
            "control_tries": [_without_seconds(each) for each in control_tries],
            "seconds": round(sum(each["seconds"] for each in every), 1),
        }

    def _random(self, scene: Scene, number: int, clock: Clock) -> Proposal:
        draw = scene.generator("control", self.place, number)
        return torch.randint(len(scene.words), (self.words_of(scene),), generator=draw).tolist(), None

    def _best(
        self, scene: Scene, name: str, propose: Callable[[Scene, int, Clock], Proposal]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """All tries of one side, and the best of them measured."""
        settings, tries = scene.settings, []
        for number in range(settings.tries):

            def attempt(number: int = number) -> dict[str, Any]:
                picked, loss = propose(scene, number, Clock(settings.seconds / settings.tries))
                words = scene.words.said(picked)
                shown = self._shown(scene, words, scene.chosen_by)
                return {"words": words, "loss": None if loss is None else round(loss, 5), "judged": count(shown)}

            tries.append(scene.store.once(f"{name}-{number}", attempt))
            scene.tell(name)
        best = min(tries, key=lambda each: (-each["judged"]["hits"], each["loss"] or 0.0))

        def measure() -> dict[str, Any]:
            keep = name if name == self.name else ""  # not the control's
            shown = self._shown(scene, best["words"], scene.measured, keep)
            cases = self.cases(scene, scene.measured)
            prompts = [self.prompt(best["words"], case.prompt) for case in cases]
            found = {"count": count(shown), "prompts": succeeded(prompts, cases, shown)}
            return {**found, "pictures": scene.pictured(name, prompts, shown)} if keep else found

        measured = scene.store.once(name, measure)
        scene.tell(name)
        return measured, tries

    def _shown(self, scene: Scene, words: str, cases: Sequence[Case], keep: str = "") -> list[bool]:
        own = self.cases(scene, cases)
        return scene.shown(own, [self.prompt(words, case.prompt) for case in own], keep=keep)


def succeeded(prompts: Sequence[str], cases: Sequence[Case], shown: Sequence[bool]) -> list[dict[str, Any]]:
    """The prompts by which the concept was shown, each with its seeds."""
    seeds: dict[str, list[int]] = {}
    for prompt, case, hit in zip(prompts, cases, shown, strict=True):
        if hit:
            seeds.setdefault(prompt, []).append(case.seed)
    return [{"prompt": prompt, "seeds": which} for prompt, which in seeds.items()]


def _without_seconds(each: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in each.items() if name != "seconds"}
