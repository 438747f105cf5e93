"""What was recorded of joint attention: maps of text tokens over image tokens, by timestep, block, image and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import ConfigError

SOFTMAX = "softmax"
OUTPUT = "output"

NOTHING_RECORDED = (
    "Nothing was recorded: sample with the MODEL that Record Joint Attention gives, connect that sampler's image here, "
    "and keep a timestep inside the chosen range."
)

# Bytes that one recording may take in main memory.
LIMIT = 2 * 2**30

# Where words are found best, by the number of double blocks; single blocks count on. Flux.1: published rankings; 3: the
# demo model, as `scripts/bench.py attention` measured it.
_BEST = {
    SOFTMAX: {19: (11, 12, 14, 17, 18), 3: (0, 2, 3, 5)},
    OUTPUT: {19: (11, 12, 14, 17, 18), 3: (0, 1, 2)},
}
_BEST_TIME = {3: 0.1}  # published rankings: the middle


def default_time(double: int) -> float:
    """The noise level t at which a Flux with `double` double blocks finds words best in a finished picture."""
    return _BEST_TIME.get(double, 0.5)


def default_blocks(double: int, kind: str = SOFTMAX) -> tuple[int, ...]:
    """The blocks in which a Flux with `double` double blocks localises words best, for a kind of recording; the last
    third of the double blocks where the depth is unknown."""
    return _BEST[kind].get(double) or tuple(range(double - max(1, double // 3), double))


def choose_blocks(text: str, double: int, single: int, kind: str = SOFTMAX) -> tuple[int, ...]:
    """Indices of the blocks that a text names, in ascending order and each once.

    Double blocks are counted from 0, single blocks continue after the last double one.

    Args:
        text: "best" (see `default_blocks`), "double", "single", "all", or a list such as "0, 3-5, s2, s4-s6", where s
            means a single block.
        double, single: How many blocks of each sort the model has.

    Raises:
        ConfigError: For any other text, and for blocks that do not exist.
    """
    named = {
        "best": default_blocks(double, kind),
        "double": range(double),
        "single": range(double, double + single),
        "all": range(double + single),
    }
    choice = text.strip().lower()
    if choice in named:
        return tuple(named[choice])
    chosen: set[int] = set()
    for item in choice.replace(" ", "").split(","):
        first, _, last = item.partition("-")
        try:
            low, high = (_block(part, double, single) for part in (first, last or first))
        except ValueError:
            raise ConfigError(
                f'"{item}" names no block of this Flux: write best, double, single, all, or a list '
                f"such as 0-{double - 1}{f', s0-s{single - 1}' if single else ''}."
            ) from None
        chosen.update(range(low, high + 1) if low <= high else range(high, low + 1))
    return tuple(sorted(chosen))


def _block(text: str, double: int, single: int) -> int:
    index = int(text.removeprefix("s"))
    if not 0 <= index < (single if text.startswith("s") else double):
        raise ValueError(text)
    return index + double if text.startswith("s") else index


@dataclass
class Recording:
    """Maps of one sampling run.

    After a run `maps` is fp16 [T, L, B, H, K, N] on the CPU: T timesteps in the order of sampling, L blocks, B images,
    H heads (1 for their mean), K text tokens or concepts, N image tokens row by row of `grid`.

    Attributes:
        kind: SOFTMAX, attention probabilities of image queries on the first text tokens, or OUTPUT, the share of each
            concept in every image token.
        blocks: As `choose_blocks` counts them.
        double: The model's number of double blocks.
        unit: The factor in `maps` that brings small probabilities into fp16's exact range.
        times: t of each timestep, 1 is noise.
        labels: The concepts of OUTPUT.
    """

    kind: str = SOFTMAX
    blocks: tuple[int, ...] = ()
    double: int = 0
    grid: tuple[int, int] = (0, 0)
    text_length: int = 0
    unit: float = 1.0
    times: list[float] = field(default_factory=list)
    labels: tuple[str, ...] = ()
    _parts: list[Tensor] = field(default_factory=list, repr=False)  # one per timestep, until they are first read
    _joined: Tensor | None = field(default=None, repr=False)

    def clear(self) -> None:
        """Deletes what was recorded, before another run."""
        self.times, self._parts, self._joined = [], [], None

    def begin(self, grid: tuple[int, int], text_length: int, keys: int) -> None:
        """Sets the geometry of a run: grid of image tokens, text tokens in the sequence, keys in all."""
        self.grid, self.text_length = grid, text_length
        self.unit = float(keys) if self.kind == SOFTMAX else 1.0

    def add(self, t: float, maps: Sequence[Tensor]) -> None:
        """One timestep: a map [B, H, K, N] for each block, on any device."""
        part = torch.stack([each * self.unit for each in maps])
        size = (len(self._parts) + 1) * part.numel() * 2
        if size > LIMIT:
            self.clear()
            raise ConfigError(
                f"This recording passes {LIMIT / 2**30:.0f} GB: record fewer blocks, timesteps or tokens, "
                "or the mean of the heads."
            )
        self._parts.append(part.to(torch.float16).cpu())
        self.times.append(t)

    @property
    def maps(self) -> Tensor:
        """All maps, times `unit`; ConfigError while there are none."""
        if self._joined is None:
            if not self._parts:
                raise ConfigError(NOTHING_RECORDED)
            self._joined, self._parts = torch.stack(self._parts), []
        return self._joined

    @property
    def nbytes(self) -> int:
        """Bytes that the maps take."""
        held = self._parts if self._joined is None else [self._joined]
        return sum(part.numel() * part.element_size() for part in held)

    def names(self) -> list[str]:
        """The blocks' names: 0, 1, ... for double blocks, s0, s1, ... for single ones."""
        return [str(index) if index < self.double else f"s{index - self.double}" for index in self.blocks]

    def mean(
        self,
        image: int = 0,
        times: Sequence[int] | None = None,
        blocks: Sequence[int] | None = None,
        head: int | None = None,
    ) -> Tensor:
        """[K, rows, columns] fp32: probabilities averaged over timesteps, blocks and heads, or over the chosen ones.

        times and blocks are positions in `times` and `blocks`. ConfigError for an image that is not in the batch.
        """
        maps = self.image(image)
        maps = maps if times is None else maps[list(times)]
        maps = maps if blocks is None else maps[:, list(blocks)]
        maps = maps if head is None else maps[:, :, head : head + 1]
        return maps.mean((0, 1, 2), dtype=torch.float32).div(self.unit).unflatten(-1, self.grid)

    def image(self, image: int) -> Tensor:
        """The maps of one image of the batch, [T, L, H, K, N] times `unit`."""
        maps = self.maps
        if not 0 <= image < maps.shape[2]:
            raise ConfigError(f"The recording has {maps.shape[2]} images: choose one from 0 to {maps.shape[2] - 1}.")
        return maps[:, :, image]
