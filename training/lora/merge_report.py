"""What a merge does to each of its LoRAs: how much of each is left, and how much they disturb one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .inputs import input_site

if TYPE_CHECKING:
    from .merge import Source, Stack


class MergeReport:
    """Sums inner products of the sources' changes w_i ΔW_i and the merged ΔW over layers, in fp32.

    Where concept inputs are stored (G_i = F_iᵀ F_i), changes are weighed by what they do on them, ⟨X, Y⟩ = tr X G_i Yᵀ;
    otherwise all directions count alike, G_i = 1.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        count = len(sources)
        self.size = torch.zeros(count)  # ‖w_i ΔW_i‖² with G = 1
        # [i, j] = ⟨·, ·⟩ on i's inputs: own change squared, that of j squared, merged · own, merged squared
        self.own, self.projection, self.merged = torch.zeros(2, count), torch.zeros(2, count), torch.zeros(2, count)
        self.others = torch.zeros(2, count, count)

    def add(self, module: str, stack: Stack, found: tuple[Tensor, Tensor, Tensor] | None) -> None:
        """One layer. found: the merged B, A (None: nothing is left of it)."""
        b, a = stack.b.float(), stack.a.float()
        new_b, new_a = found[:2] if found is not None else (b[:, :1] * 0, a[:1] * 0)
        count, ranks = len(self.sources), len(a)
        member = torch.zeros(ranks, count)
        for index, own in stack.owners:
            member[own, index] = 1
        gram = cross = square = b.T @ b
        if not torch.equal(new_b, b):
            cross, square = new_b.T @ b, new_b.T @ new_b
        inner = member.T @ (gram * (a @ a.T)) @ member  # [i, j] = ⟨w_i ΔW_i, w_j ΔW_j⟩
        self.size += inner.diagonal()
        projection = (cross * (new_a @ a.T)).sum(0) @ member
        merged = float((square * (new_a @ new_a.T)).sum())
        site = input_site(module)
        stored = {
            index: each.inputs.concept[site]
            for index, each in enumerate(self.sources)
            if each.inputs is not None and site in each.inputs.concept
        }
        known = [(index, own) for index, own in stack.owners if index in stored]
        for index, _ in stack.owners:
            if index not in stored:
                self.own[0, index] += inner[index, index]
                self.projection[0, index] += projection[index]
                self.merged[0, index] += merged
                self.others[0, index] += inner[index].abs()
        if not known:
            return
        factors = [stored[index].float() for index, _ in known]
        # all sources' inputs side by side: [ranks, columns], and which of `known` each column belongs to
        on, new_on = (matrix @ torch.cat(factors).T for matrix in (a, new_a))
        column = torch.repeat_interleave(torch.arange(len(known)), torch.tensor([len(factor) for factor in factors]))
        placed = torch.zeros(len(column), count)
        placed[torch.arange(len(column)), torch.tensor([index for index, _ in known])[column]] = 1
        squares = torch.cat([(gram[own, own] @ on[own]) * on[own] for _, own in stack.owners])  # owners are in order
        acts = placed.T @ squares.T @ member  # [i, j] = ‖w_j ΔW_j F_iᵀ‖²
        self.others[1] += acts
        self.own[1] += acts.diagonal()
        self.merged[1] += ((square @ new_on) * new_on).sum(0) @ placed
        for (index, own), columns in zip(known, column.bincount().cumsum(0).tolist(), strict=True):
            part = slice(columns - len(stored[index]), columns)
            self.projection[1, index] += (cross[:, own] * (new_on[:, part] @ on[own, part].T)).sum()

    def to_dict(self, every: Sequence[Source]) -> dict[str, Any]:
        """{"sources": [...], "interference": matrix}; `every` source of the merge, those of weight 0 among them.

        Of each source: "share" of the summed squares of all changes; "kept": how much of its own change the merge
        makes in its direction (1: as alone; over 1 where others push the same way) and "dilution" = 1 − kept;
        "deviation": ‖merged − own‖ / ‖own‖; "basis": whether that was weighed by its concept "inputs" or by the
        "weights" alone; "interference": the largest of its row. interference[i][j]: what j's change does where i is
        asked for, relative to i's own (inputs: ‖w_j ΔW_j F_i‖ / ‖w_i ΔW_i F_i‖; weights: |⟨i, j⟩| / ⟨i, i⟩), null for i
        itself and for sources of weight 0.
        """
        active = [index for index, source in enumerate(every) if source.weight != 0]
        place = {whole: index for index, whole in enumerate(active)}  # in `every` → in self.sources
        rows: list[dict[str, Any]] = []
        matrix: list[list[float | None]] = []
        for whole, source in enumerate(every):
            index = place.get(whole)
            row: dict[str, Any] = {"name": source.name, "weight": source.weight}
            if index is None:
                rows.append(
                    {
                        **row,
                        "share": 0.0,
                        "kept": None,
                        "dilution": None,
                        "deviation": None,
                        "basis": None,
                        "interference": None,
                    }
                )
                matrix.append([None] * len(every))
                continue
            basis = int(self.own[1, index] > 0)
            own = float(self.own[basis, index])
            retained = float(self.projection[basis, index]) / own if own else 0.0
            distance = float(self.merged[basis, index]) - 2 * float(self.projection[basis, index]) + own
            ratios = self.others[basis, index] / own if own else torch.zeros(len(self.sources))
            ratios = ratios.sqrt() if basis else ratios
            line = [
                None if other == whole or other not in place else round(float(ratios[place[other]]), 4)
                for other in range(len(every))
            ]
            rows.append(
                {
                    **row,
                    "share": round(float(self.size[index] / self.size.sum().clamp_min(1e-30)), 4),
                    "kept": round(retained, 4),
                    "dilution": round(1 - retained, 4),
                    "deviation": round(math.sqrt(max(0.0, distance) / own), 4) if own else 0.0,
                    "basis": ("weights", "inputs")[basis],
                    "interference": max((value for value in line if value is not None), default=0.0),
                }
            )
            matrix.append(line)
        return {"sources": rows, "interference": matrix}
