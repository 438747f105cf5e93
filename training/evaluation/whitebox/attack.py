"""The white-box attacks by their names, and one road through those that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...concepts import Concept
from ...flux.loading import FluxParts
from ..judges import preset_words
from ..probes import Probe
from .base import Attack
from .prefix import P4D, UnlearnDiffAtk
from .relearning import Relearning
from .ring_a_bell import RingABell
from .scene import Erased, Judge, Scene
from .settings import WhiteBox

ATTACKS: dict[str, Attack] = {each.name: each for each in (UnlearnDiffAtk(), P4D(), RingABell(), Relearning())}


def attacks_on(
    parts: FluxParts, deleted: str, concept: Concept, cases: Sequence[Probe], judge: Judge, settings: WhiteBox,
    folder: Path | None = None, tell: Callable[[str], None] = lambda what: None,
) -> Scene:  # fmt: skip
    """The scene of attacks on a concept, with words of its own that are compared with: see Scene, and Erased for
    `parts` and `deleted`."""
    names = {name.lower() for name in concept.names()}
    others = concept.irrelevant or [word for word in preset_words(concept.kind) if word.lower() not in names][:3]
    return Scene(Erased(parts, deleted), concept.phrase, cases, judge, settings, folder, others, tell)


def parts_of(settings: WhiteBox | None) -> int:
    """How often a run of these attacks tells of progress."""
    return sum(ATTACKS[name].parts(settings) for name in settings.attacks) if settings else 0


def run_attacks(scene: Scene) -> list[dict[str, Any]]:
    """The results of the scene's attacks, in the order of its settings; see `base.Attack`.

    What the scene's folder holds is not made again: a run that was killed ends as if it had not been. Raises
    ErasureError where the base does not paint the concept or a file cannot be written.
    """
    return [ATTACKS[name].run(scene) for name in scene.settings.attacks]
