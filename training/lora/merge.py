"""Several LoRAs as one: sums, exact concatenation, compression by SVD, and fusion without dilution.

A LoRA changes a layer's weight by ΔW = alpha / rank · B A. Everything here works on the thin factors, in float64; the
dense ΔW is never formed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, LoraError
from .format import LoraWeights
from .inputs import ConceptInputs, check_inputs, input_site
from .merge_report import MergeReport

# What each mode is for; nodes and command line show these texts.
MODES = {
    "fusion": "One change per layer that does on each concept's own inputs what its LoRA does alone, and nothing on "
    "preserved ones. Take it to erase many concepts at once; LoRAs without concept inputs are added as in a sum.",
    "sum": "The LoRAs' changes added up, as if all were loaded. Take it for a few that do not disturb one another.",
    "normalised": "The sum with the weights divided by their total (the paper's Eq. 12), which weakens each of N "
    "concepts to 1/N. Take it where a plain sum spoils images.",
    "concat": "The same change as sum, with the LoRAs' own matrices side by side as far as none repeats another. Take "
    "it where nothing may be rounded.",
    "svd": "The sum compressed to a chosen rank or error, as closely as a LoRA of that rank can be. Take it for a "
    "small file.",
}
# Of fusion, as they serve 3 to 20 concepts of the demo model (`scripts/bench.py merging`).
PRESERVE = 1.5  # weight λ of preservation
# Share of the mean eigenvalue: where stored inputs hardly reach, a fused LoRA changes nothing. With 1e-5 it follows
# their weakest directions, and other things change (three concepts: Acc_ir 84 % instead of 100 %).
RIDGE = 0.03
KEEP_COLUMNS = 512  # preservation directions in all, the strongest of each source: hundreds of LoRAs repeat each other
# Relative Frobenius error below which rank is redundant: far below what fp32 files hold, above float64's noise.
REDUNDANT = 3e-7
NOISE = 1e-13


@dataclass(frozen=True)
class Source:
    """One LoRA of a merge. name: how reports call it; weight: 0 leaves it out, negative ones subtract."""

    name: str
    weights: LoraWeights
    weight: float = 1.0
    inputs: ConceptInputs | None = None


@dataclass(frozen=True)
class Stack:
    """The sources' LoRAs of one layer side by side, scaled by weight · alpha / rank: Σ w_i ΔW_i = b @ a.

    b [outputs, R], a [R, inputs], float64; owners: (index of the source, its ranks in R).
    """

    b: Tensor
    a: Tensor
    owners: tuple[tuple[int, slice], ...]


@dataclass(frozen=True)
class Merged:
    """weights: fp32, alpha = rank, numerical rank only; report: see `merge`."""

    weights: LoraWeights
    report: dict[str, Any]


def merge(
    sources: Sequence[Source],
    mode: str = "fusion",
    *,
    rank: int | None = None,
    error: float | None = None,
    preserve: float = PRESERVE,
    ridge: float = RIDGE,
    progress: Callable[[int, int], None] | None = None,
) -> Merged:
    """One LoRA from several (MODES says which). Targets, ranks and alphas of the sources may differ.

    rank, error: of mode "svd" alone, one of them: the highest rank per layer, or the relative Frobenius error of the
    whole LoRA (0..1), spent where it saves most rank (Eckart and Young: the largest singular values of all layers are
    kept). preserve, ridge: of mode "fusion", see `_Fusion`. progress(done, total) counts layers.
    The report has "mode", "modules", "parameters", "rank" (highest), "mean_rank", "relative_error" (of ΔW to what the
    mode asks for), "notes", "interference" and, for every source, what `merge_report` says.
    Raises ConfigError for settings and LoraError for sources that cannot be merged.
    """
    _check(sources, mode, rank, error, preserve)
    active = [source for source in sources if source.weight != 0]
    modules = sorted({module for source in active for module in source.weights}, key=_natural)
    fusion = _Fusion(active, preserve, ridge) if mode == "fusion" else None
    factor = 1 / sum(source.weight for source in active) if mode == "normalised" else 1.0
    report = MergeReport(active)
    found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # B and A in fp32, singular values of B @ A
    lost = total = 0.0
    for done, module in enumerate(modules):
        stack = _stack(active, module)
        b, a = (stack.b * factor, stack.a) if fusion is None else fusion(module, stack)
        floor = NOISE * factor * sum(float(stack.b[:, own].norm() * stack.a[own].norm()) for _, own in stack.owners)
        factors = thin_svd(b, a) if mode == "svd" else None  # the others need them where a rank is redundant
        values = factors[1] if factors else singular_values(b, a)
        size = min(_needed(values, max(REDUNDANT * float(values.norm()), floor)), rank or len(values))
        total += float(values.square().sum())
        lost += float(values[size:].square().sum())
        if size and mode != "svd" and size == len(values) == b.shape[1]:  # nothing is redundant: a and b may stay
            found[module] = (b.float(), a.float(), values)
        elif size:
            u, values, v = factors or thin_svd(b, a)
            root = values[:size].sqrt()
            found[module] = ((u[:, :size] * root).float(), (root[:, None] * v[:size]).float(), values[:size])
        if error is None:
            report.add(module, stack, found.get(module))
        if progress is not None:
            progress(done + 1, len(modules))
    if error is not None and found:
        lost += _cut(found, max(0.0, error**2 * total - lost))
        for module in modules:  # measured now that the ranks are known
            report.add(module, _stack(active, module), found.get(module))
    if not found:
        raise LoraError("These LoRAs cancel each other out: change the weights.")
    weights = {module: (a, b, float(len(a))) for module, (b, a, _) in found.items()}
    ranks = [len(a) for a, _, _ in weights.values()]
    notes = fusion.notes() if fusion is not None else []
    return Merged(
        weights,
        {
            "mode": mode,
            "modules": len(weights),
            "rank": max(ranks),
            "mean_rank": round(sum(ranks) / len(ranks), 2),
            "parameters": sum(a.numel() + b.numel() for a, b, _ in weights.values()),
            "relative_error": math.sqrt(lost / total),
            **report.to_dict(sources),
            "notes": notes,
        },
    )


def _check(sources: Sequence[Source], mode: str, rank: int | None, error: float | None, preserve: float) -> None:
    if mode not in MODES:
        raise ConfigError(f"Unknown way to merge {mode!r}: choose one of {', '.join(MODES)}.")
    if (mode == "svd") != ((rank is None) != (error is None)):
        raise ConfigError("Merging by svd needs a rank or a relative error, one of them; the other modes take neither.")
    if rank is not None and (not isinstance(rank, int) or rank < 1):
        raise ConfigError(f"The rank must be a whole number from 1, not {rank!r}.")
    if error is not None and not 0 < error < 1:
        raise ConfigError(f"The relative error must lie between 0 and 1, not {error!r}.")
    if not 0 <= preserve < math.inf:
        raise ConfigError(f"The weight of preservation must be a number from 0, not {preserve!r}.")
    if not all(math.isfinite(source.weight) for source in sources):
        raise ConfigError("A LoRA's weight is no finite number: give every LoRA one.")
    if not any(source.weight for source in sources):
        raise LoraError("There is nothing to merge: choose a LoRA and give it a weight other than 0.")
    total = sum(source.weight for source in sources)
    if mode == "normalised" and total <= 1e-6 * sum(abs(source.weight) for source in sources):
        raise ConfigError(f"The weights add up to {total:g}: a normalised sum needs a positive total, or take sum.")
    widths: dict[str, tuple[str, tuple[int, int]]] = {}
    for source in sources:
        for module, (a, b, _) in source.weights.items():
            first, shape = widths.setdefault(module, (source.name, (a.shape[1], b.shape[0])))
            if shape != (a.shape[1], b.shape[0]):
                raise LoraError(
                    f"{source.name} and {first} were made for different models ({module} has other widths): merge "
                    "LoRAs of one model."
                )
        if source.inputs is not None:
            check_inputs(source.name, {m: a.shape[1] for m, (a, _, _) in source.weights.items()}, source.inputs)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts block 2 before block 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _stack(sources: Sequence[Source], module: str) -> Stack:
    rows, columns, owners, start = [], [], [], 0
    for index, source in enumerate(sources):
        if module not in source.weights:
            continue
        a, b, alpha = source.weights[module]
        columns.append(b.double() * (source.weight * alpha / len(a)))
        rows.append(a.double())
        owners.append((index, slice(start, start := start + len(a))))
    return Stack(torch.cat(columns, 1), torch.cat(rows), tuple(owners))


def singular_values(b: Tensor, a: Tensor) -> Tensor:
    """Those of b @ a, falling, as many as its smallest width."""
    return torch.linalg.svdvals(_thin_r(b) @ _thin_r(a.T).T)


def thin_svd(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(U [outputs, k], singular values [k], V [k, inputs]) of b @ a, k its smallest width, through QR of the two."""
    q_b, r_b = _thin_qr(b)
    q_a, r_a = _thin_qr(a.T)
    u, values, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return q_b @ u, values, v @ q_a.T


def _thin_qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(Q, R) with orthonormal columns; of well-conditioned matrices by `_cholesky_r`, to float64's precision times the
    squared condition number. Q @ R is the matrix either way."""
    r = _cholesky_r(matrix)
    if r is None:
        return torch.linalg.qr(matrix)
    return torch.linalg.solve_triangular(r, matrix, upper=True, left=False), r


def _thin_r(matrix: Tensor) -> Tensor:
    """R alone, which takes a third of the time."""
    r = _cholesky_r(matrix)
    return torch.linalg.qr(matrix, mode="r").R if r is None else r


def _cholesky_r(matrix: Tensor) -> Tensor | None:
    """The R of a tall, well-conditioned matrix, which is its Gram matrix's Cholesky factor; None for others."""
    if matrix.shape[1] > matrix.shape[0]:
        return None
    lower, failed = torch.linalg.cholesky_ex(matrix.T @ matrix)
    diagonal = lower.diagonal()
    return None if failed or diagonal.min() <= 1e-2 * diagonal.max() else lower.T


def _needed(values: Tensor, allowed: float) -> int:
    """How many of the singular values (falling) have to stay for an error of at most `allowed` (Frobenius)."""
    tail = values.square().flip(0).cumsum(0).sqrt()
    return len(values) - int((tail <= allowed).sum())


def _cut(found: dict[str, tuple[Tensor, Tensor, Tensor]], allowed: float) -> float:
    """Drop the smallest singular values of all layers while their squares add up to `allowed` at most; that sum."""
    every = torch.cat([values for _, _, values in found.values()]).square().sort().values
    dropped = int((every.cumsum(0) <= allowed).sum())
    smallest = every[min(dropped, len(every) - 1)]  # the largest value stays in any case
    lost = 0.0
    for module, (b, a, values) in list(found.items()):
        rank = int((values.square() >= smallest).sum())
        lost += float(values[rank:].square().sum())
        if rank:
            found[module] = (b[:, :rank].clone(), a[:rank].clone(), values[:rank])
        else:
            del found[module]
    return lost


class _Fusion:
    """argmin over ΔW of Σ_i ‖(ΔW − w_i ΔW_i) F_iᵀ‖² + λ ‖ΔW F_keepᵀ‖² + ridge ‖ΔW‖², in closed form:
    ΔW = [Σ_i w_i ΔW_i G_i] [Σ_i (G_i + λ C_i) + ridge]⁻¹ with G_i = F_iᵀ F_i and C_i the same of the source's preserved
    inputs (RegMean, Jin et al. 2023, and MACE's fusion, Lu et al. 2024); `ridge` is a share of the mean eigenvalue of
    what it is added to. So the same λ and ridge serve any number of sources. The rank is that of the stacked B at most.

    Sources without concept inputs of a layer are added as they are.
    """

    def __init__(self, sources: Sequence[Source], preserve: float, ridge: float) -> None:
        self.sources, self.preserve, self.ridge = sources, preserve, ridge
        self.plain: dict[int, int] = {}  # source → layers that were added as in a sum
        self.solved: tuple[tuple, Tensor, Tensor] | None = None  # of the last place: layers that share one are in a row

    def __call__(self, module: str, stack: Stack) -> tuple[Tensor, Tensor]:
        site = input_site(module)
        known: list[tuple[int, slice, ConceptInputs]] = []
        for index, own in stack.owners:
            inputs = self.sources[index].inputs
            if inputs is not None and site in inputs.concept:
                known.append((index, own, inputs))
            else:
                self.plain[index] = self.plain.get(index, 0) + 1
        if not known:
            return stack.b, stack.a
        phi, lower = self._solve(site, {index: inputs for index, _, inputs in known})
        right, a, column = torch.zeros(len(stack.a), len(phi), dtype=phi.dtype), stack.a.clone(), 0
        for _, own, inputs in known:
            count = len(inputs.concept[site])
            part = phi[column : column + count]
            right[own, column : column + count] = stack.a[own] @ part.T
            column += count
        rows = torch.cat([torch.arange(own.start, own.stop) for _, own, _ in known])
        right = right[rows]
        if len(phi) < phi.shape[1]:  # right (Φ Φᵀ + ridge)⁻¹ Φ, the same by the push-through identity
            a[rows] = torch.cholesky_solve(right.T, lower).T @ phi
        else:
            a[rows] = torch.cholesky_solve(phi.T @ right.T, lower).T
        return stack.b, a

    def _solve(self, site: str, inputs: dict[int, ConceptInputs]) -> tuple[Tensor, Tensor]:
        """(Φ [columns, inputs], the Cholesky factor of Φᵀ Φ + ridge or of Φ Φᵀ + ridge, whichever is smaller).

        inputs: by the source's index.
        """
        place = (site, tuple(inputs))
        if self.solved is not None and self.solved[0] == place:
            return self.solved[1:]
        share = max(1, KEEP_COLUMNS // len(inputs))
        keep = [each.keep[site][:share].double() * math.sqrt(self.preserve) for each in inputs.values()]
        phi = torch.cat([*(each.concept[site].double() for each in inputs.values()), *keep])
        gram = phi @ phi.T if len(phi) < phi.shape[1] else phi.T @ phi
        ridge = max(self.ridge * float(phi.square().mean(1).sum()), 1e-30)
        lower = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
        self.solved = (place, phi, lower)
        return phi, lower

    def notes(self) -> list[str]:
        return [
            f"{self.sources[index].name} has no concept inputs for {count} of its {len(self.sources[index].weights)} "
            "layers, which were added as in a sum."
            for index, count in sorted(self.plain.items())
        ]
