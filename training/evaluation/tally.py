"""Counting verdicts: hits, images, share and interval."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .intervals import wilson

if TYPE_CHECKING:
    from .judges.base import Verdict


@dataclass(frozen=True)
class Tally:
    """Pictures that show what was asked for. images: those judged; failed: those that could not be, which count
    nowhere."""

    hits: int
    images: int
    failed: int = 0

    @classmethod
    def of(cls, verdicts: Iterable[Verdict]) -> Tally:
        """Of one verdict for each case."""
        verdicts = list(verdicts)
        judged = [verdict.shown for verdict in verdicts if not verdict.error]
        return cls(sum(judged), len(judged), len(verdicts) - len(judged))

    @property
    def share(self) -> float | None:
        """Hits of images, 0..1; None where no picture could be judged."""
        return round(self.hits / self.images, 4) if self.images else None

    def figures(self) -> dict[str, Any]:
        """{"hits", "images", "share", "interval" (Wilson, 95 %)}."""
        interval = [round(edge, 4) for edge in wilson(self.hits, self.images)]
        return {"hits": self.hits, "images": self.images, "share": self.share, "interval": interval}

    def to_dict(self) -> dict[str, Any]:
        """`figures` and "failed"."""
        return {**self.figures(), "failed": self.failed}
