"""Re-learning: whoever has the weights trains the concept in again, on the base's own pictures of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...concepts import substitute
from ...lora.adapter import (
    adapter_parameters,
    adapter_weights,
    add_adapter,
    remove_adapter,
    set_adapter_weights,
)
from ..cases import Case, keys_of
from .base import succeeded
from .scene import Clock, Scene, count
from .settings import WhiteBox

LEARNING_RATE = 1e-3
BATCH = 4
RANK = 8
TARGETS = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
MARKS = 4  # times at which the concept rate is measured


class Relearning:
    """Flow matching (Lipman et al., ICLR 2023): mean ‖v_θ(x_t, c, t) − (ε − x0)‖² on the base's pictures x0 of c.

    What is trained is the erased model's own LoRA or, where it has none, a fresh one on the attention of all blocks; it
    is taken off, or put back, afterwards. The control is the same training on the base's pictures of something
    unrelated, under prompts that name it: what recovers there comes from training at all. Guidance is 1, as ε − x0 is
    what the plain conditional velocity estimates.
    """

    name: ClassVar[str] = "relearning"
    title: ClassVar[str] = "Re-learning"

    def parts(self, settings: WhiteBox) -> int:
        """See Attack."""
        return 1 + 2 * len(marks(settings.steps))

    def run(self, scene: Scene) -> dict[str, Any]:
        """See base.Attack; "curve" and "control_curve" hold the concept rate after each number of "steps"."""
        before = scene.before()
        curve, control = self._train(scene, self.name, False), self._train(scene, f"{self.name}-control", True)
        prompts = [case.prompt for case in scene.measured]
        return {
            "attack": self.name,
            "title": self.title,
            "before": before["before"],
            "after": curve[-1]["count"],
            "control": control[-1]["count"],
            "base": before["base"],
            "prompts": succeeded(prompts, scene.measured, curve[-1]["shown"]),
            "pictures": scene.pictured(self.name, prompts, curve[-1]["shown"]),
            **{
                name: [{"steps": 0, **before["before"]}, *({"steps": it["steps"], **it["count"]} for it in each)]
                for name, each in (("curve", curve), ("control_curve", control))
            },
            "seconds": round(sum(each["seconds"] for each in (before, *curve, *control)), 1),
        }

    def _train(self, scene: Scene, name: str, unrelated: bool) -> list[dict[str, Any]]:
        """One training, measured at its marks; goes on after the last one that is stored."""
        every = marks(scene.settings.steps)
        found = [scene.store.get(f"{name}-{mark}") for mark in every]
        if all(found):
            for _ in every:
                scene.tell(name)
            return found
        transformer = scene.erased.parts.transformer
        own = adapter_weights(transformer)
        cases, x0 = self.pictures(scene) if unrelated else scene.targets
        if not own:
            add_adapter(transformer, TARGETS, RANK, float(RANK), scene.settings.seed)
        try:
            return self._steps(scene, name, cases, x0)
        finally:
            if own:
                set_adapter_weights(transformer, own)
            else:
                remove_adapter(transformer)

    @staticmethod
    def pictures(scene: Scene) -> tuple[list[Case], Tensor]:
        """The control's: the base's pictures of something unrelated, under prompts that name it."""
        word = scene.unrelated[0]
        cases = [
            dataclasses.replace(case, prompt=substitute(case.prompt, scene.phrase, word)) for case in scene.targets[0]
        ]
        return cases, scene.latents(scene.erased.render(keys_of(cases), base=True))

    def _steps(self, scene: Scene, name: str, cases: Sequence[Case], x0: Tensor) -> list[dict[str, Any]]:
        transformer, found = scene.erased.parts.transformer, []
        parameters = adapter_parameters(transformer)
        optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE)
        draw, done = scene.generator(name), 0
        clock = Clock(scene.settings.seconds)
        stored = scene.store.get_tensors(name)
        first = next(mark for mark in marks(scene.settings.steps) if scene.store.get(f"{name}-{mark}") is None)
        # later steps than the first mark to be measured: a measurement was lost, and is made again from the start
        if stored is not None and stored["done"] <= first:
            done = int(stored["done"])
            with torch.no_grad():
                for parameter, value in zip(parameters, stored["parameters"], strict=True):
                    parameter.copy_(value)
            optimiser.load_state_dict(stored["optimiser"])
            draw.set_state(stored["draw"])
        for mark in marks(scene.settings.steps):

            def measured(mark: int = mark) -> dict[str, Any]:
                nonlocal done
                while done < mark and not clock.spent():
                    self._step(scene, cases, x0, optimiser, draw)
                    done += 1
                scene.store.put_tensors(
                    name,
                    {
                        "done": done,
                        "parameters": [p.detach().cpu() for p in parameters],
                        "optimiser": optimiser.state_dict(),
                        "draw": draw.get_state(),
                    },
                )
                keep = name if name == self.name and mark == scene.settings.steps else ""  # the control's are not shown
                shown = scene.shown(scene.measured, [case.prompt for case in scene.measured], keep=keep)
                return {"steps": done, "count": count(shown), "shown": shown}

            found.append(scene.store.once(f"{name}-{mark}", measured))
            scene.tell(name)
        return found

    @staticmethod
    def _step(
        scene: Scene, cases: Sequence[Case], x0: Tensor, optimiser: torch.optim.Optimizer, draw: torch.Generator
    ) -> None:
        device = next(scene.erased.parts.transformer.parameters()).device
        rows = torch.randint(len(cases), (BATCH,), generator=draw)
        t = torch.rand(BATCH, generator=draw)
        noise = torch.randn(x0[rows].shape, generator=draw)
        x_t = (1 - t[:, None, None]) * x0[rows] + t[:, None, None] * noise
        prompts = [cases[int(row)].prompt for row in rows]
        with torch.enable_grad():
            embeds = scene.erased.parts.text.encode(prompts)
            found = scene.erased.velocity(x_t.to(device), t.to(device), embeds, 1.0, prompts)
            loss = (found - (noise - x0[rows]).to(device)).square().mean()
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()


def marks(steps: int) -> list[int]:
    """The numbers of training steps after which the concept rate is measured, the last one `steps`."""
    return sorted({max(1, round(steps * part / MARKS)) for part in range(1, MARKS + 1)})
