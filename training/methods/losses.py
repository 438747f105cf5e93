"""Loss terms of the erasure methods: pure functions of tensors, each with its formula and where it comes from.

Velocities are [B, N, C] (batch, image tokens, channels); means run over everything, so that a term's size does not
depend on resolution or batch. Targets are taken as constants. v_o is the frozen base, v_θ the network being trained, c
the prompt with the concept, ∅ the empty prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def negative_guidance_target(
    base_concept: Tensor, base_empty: Tensor, eta: Tensor | float, strength: Tensor | float = 1.0
) -> Tensor:
    """The velocity that the concept's prompt is sent to: v_o(c) + s·(1 + η)·(v_o(∅) − v_o(c)).

    Args:
        base_concept: v_o(c), [B, N, C].
        base_empty: v_o(∅), [B, N, C].
        eta: η, how far past v_o(∅) the target lies; a number or [B, 1, 1].
        strength: s, a number or [B, 1, 1]. At 1 the result is ESD's v_o(∅) − η·(v_o(c) − v_o(∅)), at 0 it is v_o(c).

    Returns:
        [B, N, C], a constant for autograd.

    Source: Gandikota et al., ICCV 2023, Eq. 7, for velocities.
    """
    return (base_concept + strength * (1 + eta) * (base_empty - base_concept)).detach()


def velocity_matching(student: Tensor, target: Tensor) -> Tensor:
    """mean ‖v_θ − target‖².

    With `negative_guidance_target` as the target it is L_esd, with the base's own velocity it is L_lora.
    """
    return F.mse_loss(student.float(), target.detach().float())


def relative_velocity_matching(student: Tensor, target: Tensor, reference: Tensor) -> Tensor:
    """`velocity_matching` over the mean square of `reference` [B, N, C], sample by sample; then the mean over samples.

    With reference = target − v_o(c) the loss starts at 1 for every sample, whatever the concept and t are.
    """
    error = (student.float() - target.detach().float()).square().flatten(1).mean(1)
    size = reference.detach().float().square().flatten(1).mean(1)
    return (error / size.clamp_min(1e-6)).mean()


def attention_mass(columns: Sequence[Tensor]) -> Tensor:
    """L_attn: mean over blocks, heads and image queries of Σ_{j ∈ span} A[query, j] (EraseAnything, Eq. 4, as a mean).

    `columns`: for each captured block [B, heads, image queries], attention already summed over the concept's tokens.
    """
    return torch.stack([c.float().mean() for c in columns]).mean()


def attention_features(columns: Sequence[Tensor]) -> Tensor:
    """F of L_rsc: the columns' mean over blocks and heads, L2-normalised over image queries. → [B, image queries]."""
    mean = torch.stack([c.float().mean(dim=1) for c in columns]).mean(dim=0)
    return F.normalize(mean, dim=-1, eps=1e-12)


def reverse_self_contrastive(student: Tensor, synonym: Tensor, irrelevant: Tensor, tau: float = 0.07) -> Tensor:
    """L_rsc = mean −log[ Σ_k e^{F·F_k/τ} / (e^{F·F_syn/τ} + Σ_k e^{F·F_k/τ}) ].

    Minimising it moves the student's features towards those of the irrelevant words and away from the synonym's.
    EraseAnything's Eq. 5, as printed, does the opposite.

    Args:
        student: F, [B, Q], L2-normalised like all features here.
        synonym: F_syn, [B, Q].
        irrelevant: F_k, [B, K, Q] for K words.
        tau: The temperature τ.
    """
    towards = torch.logsumexp(torch.einsum("bq,bkq->bk", student, irrelevant.detach()) / tau, dim=1)
    away = (student * synonym.detach()).sum(-1) / tau
    return (torch.logaddexp(towards, away) - towards).mean()


def gap_margin(student: Tensor, anchor: Tensor, base_concept: Tensor, eta: float, gamma: float) -> Tensor:
    """GEM's gap margin: γ·mean relu(‖v_θ(c) − v_o(c_a)‖ − η·‖v_θ(c) − v_o(c)‖), with one norm for each sample.

    Args:
        student, anchor, base_concept: v_θ(c), v_o(c_a) and v_o(c), [B, N, C] each.

    Source: Grebe et al., ICML 2026.
    """
    near = (student.float() - anchor.detach().float()).flatten(1).norm(dim=1)
    far = (student.float() - base_concept.detach().float()).flatten(1).norm(dim=1)
    return gamma * F.relu(near - eta * far).mean()
