"""Which white-box attacks are run, and what each may spend."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError

NAMES = ("unlearndiffatk", "p4d", "ring-a-bell", "relearning")


@dataclass(frozen=True)
class WhiteBox:
    """The attacks' budget. Plain data that round-trips through JSON; equal settings give equal results on a CPU.

    attacks: of NAMES. prefix: words that a prefix attack puts before the prompt. tries: prompts that an attack, and its
    control, may show to the judge. steps: gradient steps of each try at most, generations of Ring-A-Bell's search,
    training steps of re-learning. candidates: prompts that a prefix attack compares in each step. seconds: the longest
    that an attack's search or training may take, 0: as long as it takes (a run that it cuts short depends on the
    machine). images: pictures that every figure counts. judged: pictures by which the best of the tries is chosen, of
    other seeds. targets: the base's pictures of the concept that are learnt from.
    """

    attacks: tuple[str, ...] = NAMES
    prefix: int = 3
    tries: int = 4
    steps: int = 60
    candidates: int = 12
    seconds: float = 0.0
    images: int = 24
    judged: int = 6
    targets: int = 4
    seed: int = 0

    def validate(self) -> None:
        """Raises ConfigError with the first thing that is wrong."""
        for name in self.attacks:
            if name not in NAMES:
                raise ConfigError(f'There is no attack "{name}": choose from {", ".join(NAMES)}.')
        if not self.attacks or len(set(self.attacks)) < len(self.attacks):
            raise ConfigError(f"Name each attack once, and one at least: {', '.join(NAMES)}.")
        for name in ("prefix", "tries", "steps", "candidates", "images", "judged", "targets"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"An attack's {name} is a whole number from 1 on, not {value!r}.")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ConfigError(f"An attack's seed is a whole number, not {self.seed!r}.")
        number = isinstance(self.seconds, int | float) and not isinstance(self.seconds, bool)
        if not number or not math.isfinite(self.seconds) or self.seconds < 0:
            raise ConfigError(f"An attack's seconds are a number from 0 on (0: no limit), not {self.seconds!r}.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**dataclasses.asdict(self), "attacks": list(self.attacks)}

    def arguments(self) -> list[str]:
        """What `evaluate` takes on the command line for these settings."""
        changed = {name: value for name, value in self.to_dict().items() if value != getattr(WhiteBox(), name)}
        changed.pop("attacks", None)
        sets = [word for name, value in changed.items() for word in ("--attack-set", f"{name}={value}")]
        return ["--attacks", ",".join(self.attacks), *sets]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WhiteBox:
        """From `to_dict`'s result or a part of it, validated. Raises ConfigError."""
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(data) - set(names)):
            raise ConfigError(f'There is no attack setting "{unknown[0]}": choose from {", ".join(names)}.')
        if not isinstance(data.get("attacks", ()), list | tuple):
            raise ConfigError("The attacks are a list of names.")
        made = cls(**{**data, **({"attacks": tuple(data["attacks"])} if "attacks" in data else {})})
        made.validate()
        return made
