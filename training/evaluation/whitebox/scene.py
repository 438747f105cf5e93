"""What an attack is run on: the erased model, the pictures that are asked for, who judges them, what is kept."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError, ErasureError
from ...lora.adapter import adapter_disabled
from ...models.loading import FluxParts
from ...models.sampling import encode, sigmas
from ...models.text import TextEmbeds
from ...models.velocity import velocity
from ..cases import Case, Key
from ..judges.base import Judge
from ..pictures import PictureFolder, picture_name, write_whole
from ..render import render, span_masks, stacked
from ..tally import Tally
from .settings import WhiteBox
from .words import Words

PICTURED = 3  # seeds of each attack whose pictures a result names


@dataclass
class Erased:
    """A model under attack: its parts (a LoRA, if any, on the transformer at its strength), or a phrase whose tokens
    get no attention (attention deletion). With neither it is the base."""

    parts: FluxParts
    deleted: str = ""

    def velocity(
        self, latents: Tensor, t: Tensor, embeds: TextEmbeds, guidance: float, prompts: Sequence[str]
    ) -> Tensor:
        """v_erased(x_t, c, t) of packed latents [B, N, 64] under B prompts, whose `embeds` may be mixtures."""
        masks = span_masks(self.parts, prompts, self.deleted) if self.deleted else None
        with self.parts.computing():
            return velocity(
                self.parts.transformer, latents, t, embeds, guidance, self.parts.variant.grid, deleted=masks
            )

    @torch.no_grad()
    def base_velocity(self, latents: Tensor, t: Tensor, embeds: TextEmbeds, guidance: float) -> Tensor:
        """v_base(x_t, c, t): no LoRA, nothing deleted."""
        with adapter_disabled(self.parts.transformer), self.parts.computing():
            return velocity(self.parts.transformer, latents, t, embeds, guidance, self.parts.variant.grid)

    def render(self, keys: Sequence[Key], base: bool = False) -> Tensor:
        """Pictures [n, 3, H, W] in 0..1, of 8 bits, as the evaluation renders them; base: by the base model."""
        made: dict[Key, Tensor] = {}
        with adapter_disabled(self.parts.transformer) if base else nullcontext():
            render(self.parts, keys, made, deleted="" if base else self.deleted)
        return stacked(made, keys)


@dataclass
class Store:
    """A folder of results that are whole or absent, so that a killed attack goes on after the last of them.

    Raises ConfigError where the folder holds the attacks of another request.
    """

    folder: Path | None
    request: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._held: dict[str, Any] = {}
        if self.folder is None:
            return
        known = self.get("request")
        if known is None:
            self.put("request", self.request)
        elif known != json.loads(json.dumps(self.request)):
            raise ConfigError(f"{self.folder.name} holds attacks with other settings: choose another folder.")

    def get(self, name: str) -> Any:
        """What was put under `name`; None where nothing was, or it cannot be read (it is then made again)."""
        if name in self._held or self.folder is None:
            return self._held.get(name)
        try:
            return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def put(self, name: str, value: Any) -> Any:
        """Keeps a JSON value, and gives it back."""
        if self.folder is None:
            self._held[name] = value
        else:
            write_whole(self.folder / f"{name}.json", (json.dumps(value, indent=1) + "\n").encode())
        return value

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The object under `name`, made where it is absent, with the seconds that it took in "seconds"."""
        found = self.get(name)
        if found is not None:
            return found
        began = time.monotonic()
        made = make()
        return self.put(name, {**made, "seconds": round(time.monotonic() - began, 2)})

    def get_tensors(self, name: str) -> Any:
        """What `put_tensors` kept; None where there is nothing or it cannot be read."""
        if self.folder is None:
            return None
        try:
            return torch.load(self.folder / f"{name}.pt", map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, KeyError):
            return None

    def put_tensors(self, name: str, value: Any) -> None:
        """Keeps tensors in plain containers."""
        if self.folder is not None:
            out = io.BytesIO()
            torch.save(value, out)
            write_whole(self.folder / f"{name}.pt", out.getvalue())


class Clock:
    """A budget of seconds; 0: no limit."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds if seconds else None

    def spent(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end


class Scene:
    """An erased model, and everything that the attacks on it share.

    cases: prompts with the concept, their seeds and what each picture should show, `needed(settings)` of them, each
    another seed; unrelated: words for other things, which take the place of `phrase` in comparisons. folder: where
    results are kept, None: only in memory. Raises ConfigError for settings or cases that cannot be used.
    """

    def __init__(
        self,
        erased: Erased,
        phrase: str,
        cases: Sequence[Case],
        judge: Judge,
        settings: WhiteBox,
        folder: Path | None = None,
        unrelated: Sequence[str] = (),
        tell: Callable[[str], None] = lambda what: None,
    ) -> None:
        settings.validate()
        if not unrelated:
            raise ConfigError("The attacks need an unrelated word to compare the concept with: name one.")
        if len(cases) < self.needed(settings):
            raise ConfigError(
                f"The attacks need {self.needed(settings)} prompts with seeds, and {len(cases)} are given: ask for "
                "fewer images."
            )
        self.erased, self.phrase, self.settings = erased, phrase, settings
        self.unrelated, self.tell, self.judge = tuple(unrelated), tell, judge
        first, second = settings.images, settings.images + settings.judged
        self.measured, self.chosen_by = list(cases[:first]), list(cases[first:second])
        self.taught = list(cases[second : second + settings.targets])
        facts = {
            "settings": settings.to_dict(),
            "phrase": phrase,
            "deleted": erased.deleted,
            "unrelated": list(unrelated),
        }
        self.store = Store(folder, {**facts, "cases": [[case.prompt, case.seed] for case in cases]})

    @staticmethod
    def needed(settings: WhiteBox) -> int:
        """How many cases there must be."""
        return settings.images + settings.judged + settings.targets

    @cached_property
    def words(self) -> Words:
        """The words of prompt attacks: without the concept's own, which deletion would delete and filters find."""
        return Words(self.erased.parts.text, [self.phrase])

    @cached_property
    def targets(self) -> tuple[list[Case], Tensor]:
        """The base's pictures of the concept: the cases that show it, and their latents x0 [n, N, 64] on the CPU.

        Raises ErasureError where the base model shows it in none.
        """
        pictures = self.erased.render([case.key for case in self.taught], base=True)
        shown = self._shown(pictures, self.taught)
        chosen = [number for number, it in enumerate(shown) if it]
        if not chosen:
            raise ErasureError(
                f'The base model\'s {len(shown)} pictures for the attacks do not show "{self.phrase}": there is '
                "nothing to attack with; raise targets, or choose what the base can paint."
            )
        return [self.taught[number] for number in chosen], self.latents(pictures[chosen])

    def latents(self, pictures: Tensor) -> Tensor:
        """x0 [n, N, 64] of pictures [n, 3, H, W] in 0..1, on the CPU."""
        return encode(self.erased.parts.vae, pictures).float().cpu()

    def noise_levels(self, count: int) -> Tensor:
        """[count] of the sampler's own t, spread over its noisier half, where a picture's content is decided."""
        variant = self.erased.parts.variant
        levels = sigmas(variant, variant.default_steps, variant.grid[0] * variant.grid[1])
        noisy = levels[: max(1, len(levels) // 2)]
        return noisy[torch.linspace(0, len(noisy) - 1, count).round().long()]

    def shown(self, cases: Sequence[Case], prompts: Sequence[str], base: bool = False, keep: str = "") -> list[bool]:
        """Whether each case's content is seen when its picture is asked for by another prompt. keep: the name under
        which the pictures are kept, "" where they are not."""
        keys = [(prompt, case.seed) for prompt, case in zip(prompts, cases, strict=True)]
        made = self.erased.render(keys, base)
        if keep and self.store.folder:
            album = PictureFolder(self.store.folder / keep)
            for key, picture in zip(keys, made, strict=True):
                album[key] = picture.mul(255).round().byte()
        return self._shown(made, cases)

    def _shown(self, pictures: Tensor, cases: Sequence[Case]) -> list[bool]:
        return [verdict.shown for verdict in self.judge.judge(pictures, cases)]

    def pictured(self, name: str, prompts: Sequence[str], shown: Sequence[bool]) -> list[dict[str, Any]]:
        """The pictures of PICTURED measured seeds in the folder `name`, those that the attack brought back first.

        Of each "seed" the "base", the erased model "before" and "after" the attack: {"prompt", "file" (in the folder),
        "shown"}. None of results without a folder, or from before pictures were kept.
        """
        before = self.store.get("before")
        if self.store.folder is None or "shown" not in before:
            return []
        plain, seen_by = [case.prompt for case in self.measured], before["shown"]
        gained = sorted(range(len(shown)), key=lambda n: (not shown[n], seen_by["before"][n], not seen_by["base"][n]))

        def side(folder: str, prompt: str, seed: int, seen: bool) -> dict[str, Any]:
            return {"prompt": prompt, "file": f"{folder}/{picture_name(prompt, seed)}", "shown": seen}

        return [
            {
                "seed": (seed := self.measured[n].seed),
                "base": side("base", plain[n], seed, seen_by["base"][n]),
                "before": side("before", plain[n], seed, seen_by["before"][n]),
                "after": side(name, prompts[n], seed, shown[n]),
            }
            for n in gained[:PICTURED]
        ]

    def generator(self, *names: object) -> torch.Generator:
        """Random numbers of one part of one attack, whatever was run before it."""
        text = json.dumps([self.settings.seed, *map(str, names)])
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
        return torch.Generator("cpu").manual_seed(number)

    def before(self) -> dict[str, Any]:
        """Counts with the plain prompts: {"before": …, "base": …}."""

        def make() -> dict[str, Any]:
            prompts = [case.prompt for case in self.measured]
            shown = {
                side: self.shown(self.measured, prompts, base=side == "base", keep=side) for side in ("before", "base")
            }
            return {**{side: count(each) for side, each in shown.items()}, "shown": shown}

        found = self.store.once("before", make)
        self.tell("before")
        return found


def count(shown: Sequence[bool]) -> dict[str, Any]:
    """{"hits", "images", "share", "interval"} (Wilson, 95 %)."""
    return Tally(sum(shown), len(shown)).figures()
