"""The white-box attacks by their names, and one road through those that are asked for."""

from __future__ import annotations

from typing import Any

from .base import Attack
from .prefix import P4D, UnlearnDiffAtk
from .relearning import Relearning
from .ring_a_bell import RingABell
from .scene import Scene
from .settings import WhiteBox

ATTACKS: dict[str, Attack] = {each.name: each for each in (UnlearnDiffAtk(), P4D(), RingABell(), Relearning())}


def parts_of(settings: WhiteBox | None) -> int:
    """How often a run of these attacks tells of progress."""
    return sum(ATTACKS[name].parts(settings) for name in settings.attacks) if settings else 0


def run_attacks(scene: Scene) -> list[dict[str, Any]]:
    """The results of the scene's attacks, in the order of its settings; see `base.Attack`.

    What the scene's folder holds is not made again: a run that was killed ends as if it had not been. Raises
    ErasureError where the base does not show the concept or a file cannot be written.
    """
    return [ATTACKS[name].run(scene) for name in scene.settings.attacks]
