"""Changes of a weight as a LoRA's two matrices: LoRA itself, LoCon, LoHa, LoKr and whole differences.

ΔW of a layer [outputs, inputs], by the formulas of LyCORIS (Yeh et al., "Navigating Text-To-Image Customization",
2023), with r the rank and ⊙ the product of elements:

    LoRA   alpha / r · B A           LoCon of 1×1 kernels: B M A
    LoHa   alpha / r · (W1a W1b) ⊙ (W2a W2b)
    LoKr   alpha / r · W1 ⊗ W2,      W1 = W1a W1b or whole, W2 likewise; both whole: no r, scale 1
    diff   ΔW itself

All are low-rank sums of a rank that follows from the formula. Up to MAX_RANK they are factored exactly; above that the
largest singular values are kept (Eckart and Young), and the error is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MAX_RANK = 256  # of a layer that was no LoRA: a Flux.1 with it on all layers holds 4 GB in fp32
NOISE = 1e-8  # relative Frobenius error below which singular values are rounding
_OVERSAMPLING = 32  # further random directions, for a range that holds the largest singular values (Halko et al., 2011)

_KINDS = {
    "A": "LoRA",
    "B": "LoRA",
    "diff": "whole difference",
    **{f"hada_{part}": "LoHa" for part in ("w1_a", "w1_b", "w2_a", "w2_b")},
    **{f"lokr_{part}": "LoKr" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
}


class Unfactorable(ValueError):
    """Why a layer's tensors make no change of a linear layer: the end of a sentence."""


@dataclass(frozen=True)
class Factors:
    """ΔW ≈ scale · b @ a, with rank the r of the formula (None where it has none); kind: "" for a LoRA.

    lost, total: ‖ΔW − b a‖² and ‖ΔW‖², of the unscaled change.
    """

    a: Tensor
    b: Tensor
    rank: int | None
    kind: str = ""
    lost: float = 0.0
    total: float = 0.0


def factors_of(layer: Mapping[str, Tensor]) -> Factors:
    """A layer's tensors by role (see `dialects.LoraKey`) as two matrices in fp32; Unfactorable where they make none."""
    if "hada_t1" in layer or "lokr_t2" in layer:
        raise Unfactorable("has the kernels of convolutions, and a Flux has no convolutions")
    kinds = sorted({_KINDS[role] for role in layer if role in _KINDS})
    if len(kinds) > 1:
        raise Unfactorable(f"has a {kinds[0]} and a {kinds[1]} at once; choose a file that was not mixed of two")
    if not kinds:
        raise Unfactorable("lacks lora_A")
    if kinds == ["LoHa"]:
        found = _loha(*(_matrix(layer, f"hada_{part}") for part in ("w1_a", "w1_b", "w2_a", "w2_b")))
    elif kinds == ["LoKr"]:
        found = _lokr(layer)
    else:
        found = _lora(layer) if kinds == ["LoRA"] else _cut(_matrix(layer, "diff"), None, "whole difference")
    return replace(found, a=found.a.float(), b=found.b.float())  # fp64 of a whole model's layers would not fit


def _matrix(layer: Mapping[str, Tensor], role: str) -> Tensor:
    """A tensor in float64 with 1×1 kernels as the matrices that they are."""
    if role not in layer:
        raise Unfactorable(f"lacks {role}")
    return _flat(layer[role]).double()


def _flat(tensor: Tensor) -> Tensor:
    if tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise Unfactorable("has matrices that do not multiply")
    return tensor


def _lora(layer: Mapping[str, Tensor]) -> Factors:
    for role in "AB":
        if role not in layer:
            raise Unfactorable(f"lacks lora_{role}")
    a, b = _flat(layer["A"]), _flat(layer["B"])
    if "mid" in layer:
        middle = _matrix(layer, "mid")
        if middle.shape != (b.shape[1], len(a)):
            raise Unfactorable("has matrices that do not multiply")
        return Factors(middle @ a.double(), b.double(), len(a))
    if len(a) != b.shape[1]:
        raise Unfactorable("has matrices that do not multiply")
    return Factors(a, b, len(a))


def _loha(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> Factors:
    if (
        w1_a.shape[1] != len(w1_b)
        or w2_a.shape[1] != len(w2_b)
        or len(w1_a) != len(w2_a)
        or (w1_b.shape[1] != w2_b.shape[1])
    ):
        raise Unfactorable("has matrices that do not multiply")
    # (Σ_i p_i q_iᵀ) ⊙ (Σ_j u_j v_jᵀ) = Σ_ij (p_i ⊙ u_j) (q_i ⊙ v_j)ᵀ
    b = (w1_a[:, :, None] * w2_a[:, None, :]).flatten(1)
    a = (w1_b[:, None, :] * w2_b[None, :, :]).flatten(0, 1)
    rank = len(w1_b)
    if len(a) <= min(MAX_RANK, len(b), a.shape[1]):
        return Factors(a, b, rank, "LoHa")
    if len(a) < min(len(b), a.shape[1]):  # the singular values of a thin product, without its dense form
        (left, r_left), (right, r_right) = torch.linalg.qr(b), torch.linalg.qr(a.T)
        inner = _cut(r_left @ r_right.T, rank, "LoHa")
        return Factors(inner.a @ right.T, left @ inner.b, rank, "LoHa", inner.lost, inner.total)
    return _cut((w1_a @ w1_b) * (w2_a @ w2_b), rank, "LoHa")


def _lokr(layer: Mapping[str, Tensor]) -> Factors:
    rank: int | None = None
    pairs: list[tuple[Tensor, Tensor]] = []
    whole: list[tuple[Tensor, Tensor, Tensor] | None] = []
    for name in ("lokr_w1", "lokr_w2"):
        if name in layer:
            u, s, v = _svd(_matrix(layer, name))
            whole.append((u, s, v))
            pairs.append((u * s.sqrt(), s.sqrt()[:, None] * v))
            continue
        outer, inner = _matrix(layer, f"{name}_a"), _matrix(layer, f"{name}_b")
        if outer.shape[1] != len(inner):
            raise Unfactorable("has matrices that do not multiply")
        pairs.append((outer, inner))
        whole.append(None)
        rank = len(inner)  # of the second one where both have one, as LyCORIS and the host take it
    (b1, a1), (b2, a2) = pairs
    if len(a1) * len(a2) <= min(MAX_RANK, len(b1) * len(b2), a1.shape[1] * a2.shape[1]):
        b1, a1, b2, a2 = (matrix.contiguous() for matrix in (b1, a1, b2, a2))  # torch.kron takes no others
        return Factors(torch.kron(a1, a2), torch.kron(b1, b2), rank, "LoKr")
    # the singular vectors of a Kronecker product are products of its parts' singular vectors
    (u1, s1, v1), (u2, s2, v2) = (
        found or _svd(outer @ inner) for found, (outer, inner) in zip(whole, pairs, strict=True)
    )
    values = torch.outer(s1, s2).flatten()
    order = values.argsort(descending=True)[:MAX_RANK]
    first, second = order // len(s2), order % len(s2)
    root, total = values[order].sqrt(), float(values.square().sum())
    b = (u1[:, None, first] * u2[None, :, second]).flatten(0, 1) * root
    a = root[:, None] * (v1[first, :, None] * v2[second, None, :]).flatten(1)
    return Factors(a, b, rank, "LoKr", max(0.0, total - float(values[order].square().sum())), total)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    # what is not kept here is rounding: the values that sum up to less than NOISE
    tail = s.flip(0).square().cumsum(0).flip(0).sqrt()
    rank = max(1, int((tail > NOISE * s.norm()).sum()))
    return u[:, :rank], s[:rank], v[:rank]


def _cut(change: Tensor, rank: int | None, kind: str) -> Factors:
    """A dense change as two matrices of at most MAX_RANK."""
    total = float(change.square().sum())
    if min(change.shape) > 2 * (MAX_RANK + _OVERSAMPLING):  # a whole SVD would take minutes for a large layer
        generator = torch.Generator().manual_seed(0)
        found = torch.randn(change.shape[1], MAX_RANK + _OVERSAMPLING, generator=generator, dtype=change.dtype)
        for _ in range(3):
            basis = torch.linalg.qr(change @ found)[0]
            found = change.T @ basis
        u, s, v = _svd(found.T)
        u = basis @ u
    else:
        u, s, v = _svd(change)
    root = s[:MAX_RANK].sqrt()
    covered = float(s[:MAX_RANK].square().sum())
    return Factors(root[:, None] * v[:MAX_RANK], u[:, :MAX_RANK] * root, rank, kind, max(0.0, total - covered), total)
