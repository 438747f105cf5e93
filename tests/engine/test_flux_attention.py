"""Joint-attention capture and the velocity call, against a float64 softmax written out and finite differences."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb

from tests.support.flux_models import TINY_GRID, TINY_TEXT, tiny_inputs, tiny_transformer
from training.errors import ConfigError
from training.lora.adapter import add_adapter
from training.models.attention import AttentionCapture, spans_to_mask
from training.models.velocity import velocity


def naive_columns(block, seen: dict) -> torch.Tensor:
    """softmax(q k^T / sqrt d) of all image queries, [B, H, N, text + image], from a float64 block's own inputs."""
    attn, hidden, text, rope = block.attn, seen["hidden_states"], seen.get("encoder_hidden_states"), seen["rope"]

    def heads(x):
        return x.unflatten(-1, (attn.heads, -1))

    query, key = attn.norm_q(heads(attn.to_q(hidden))), attn.norm_k(heads(attn.to_k(hidden)))
    if text is not None:
        query = torch.cat([attn.norm_added_q(heads(attn.add_q_proj(text))), query], 1)
        key = torch.cat([attn.norm_added_k(heads(attn.add_k_proj(text))), key], 1)
    query, key = (apply_rotary_emb(x, rope, sequence_dim=1).double() for x in (query, key))
    scores = torch.einsum("bnhd,bshd->bhns", query, key) / query.shape[-1] ** 0.5
    return scores.softmax(-1)[:, :, TINY_TEXT:]


def spy(block, seen: dict):
    def hook(_module, _args, kwargs):
        seen.update(kwargs, rope=kwargs["image_rotary_emb"])

    return block.attn.register_forward_pre_hook(hook, with_kwargs=True)


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_columns_are_the_float64_softmax(index: int) -> None:
    latents, t, embeds = tiny_inputs()
    mask = spans_to_mask([[(1, 3), (5, 6)], [(0, 2)]], TINY_TEXT)
    total = AttentionCapture(mask, [index])
    each = AttentionCapture(torch.eye(TINY_TEXT)[None], [index])
    model = tiny_transformer()
    for capture in (total, each):
        velocity(model, latents, t, embeds, 3.5, TINY_GRID, capture=capture)

    double = tiny_transformer(dtype=torch.float64)
    block = [*double.transformer_blocks, *double.single_transformer_blocks][index]
    seen: dict = {}
    handle = spy(block, seen)
    velocity(double, latents.double(), t, embeds, 3.5, TINY_GRID)
    handle.remove()
    expected = naive_columns(block, seen)

    assert each.columns[0].shape == (2, 2, TINY_TEXT, latents.shape[1])
    reference = expected[..., :TINY_TEXT].transpose(2, 3)
    assert ((each.columns[0] - reference).abs() / reference).max() < 1e-5
    summed = torch.einsum("bhns,bs->bhn", expected[..., :TINY_TEXT], mask.double())
    assert ((total.columns[0] - summed).abs() / summed).max() < 1e-5
    assert reference.std() > 1e-3  # the attention is not uniform, so that a wrong column would show


def test_more_maps_than_a_head_is_wide() -> None:
    latents, t, embeds = tiny_inputs()
    generator = torch.Generator().manual_seed(2)
    weights = torch.rand(1, 70, TINY_TEXT, generator=generator)  # heads are 32 wide
    many, each = AttentionCapture(weights, [1]), AttentionCapture(torch.eye(TINY_TEXT)[None], [1])
    model = tiny_transformer()
    for capture in (many, each):
        velocity(model, latents, t, embeds, 3.5, TINY_GRID, capture=capture)
    torch.testing.assert_close(many.columns[0], torch.einsum("kl,bhln->bhkn", weights[0], each.columns[0]))


def test_gradient_is_the_finite_difference() -> None:
    latents, t, embeds = tiny_inputs(dtype=torch.float64)
    model = tiny_transformer(dtype=torch.float64)
    mask = spans_to_mask([[(1, 4)], [(2, 3)]], TINY_TEXT).double()
    weight = model.transformer_blocks[0].attn.add_k_proj.weight.requires_grad_(True)

    def mass() -> torch.Tensor:
        capture = AttentionCapture(mask, [1])
        velocity(model, latents, t, embeds, 3.5, TINY_GRID, capture=capture, stop_after_block=1)
        return capture.columns[0].pow(2).sum()

    (gradient,) = torch.autograd.grad(mass(), weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    step = 1e-3  # diffusers rotates in fp32: a smaller step would drown in its rounding
    with torch.no_grad():
        weight += step * direction
        above = mass()
        weight -= 2 * step * direction
        below = mass()
    expected = (above - below) / (2 * step)
    assert abs(float((gradient * direction).sum() / expected) - 1) < 1e-3


def test_capture_leaves_the_velocity_as_it_is() -> None:
    latents, t, embeds = tiny_inputs()
    model = tiny_transformer()
    before = velocity(model, latents, t, embeds, 3.5, TINY_GRID)
    capture = AttentionCapture(torch.ones(1, TINY_TEXT), [0, 3])
    torch.testing.assert_close(velocity(model, latents, t, embeds, 3.5, TINY_GRID, capture=capture), before)
    torch.testing.assert_close(velocity(model, latents, t, embeds, 3.5, TINY_GRID), before)


def test_truncated_pass_stops_and_captures_the_same() -> None:
    latents, t, embeds = tiny_inputs()
    model = tiny_transformer()
    ran: list[str] = []
    for index, block in enumerate([*model.transformer_blocks, *model.single_transformer_blocks]):
        for part_of_it in ("attn", "ff"):
            if hasattr(block, part_of_it):
                name = f"{part_of_it} {index}"
                getattr(block, part_of_it).register_forward_hook(lambda *_, name=name: ran.append(name))
    whole, part = (AttentionCapture(torch.ones(1, TINY_TEXT), [1, 0]) for _ in range(2))
    velocity(model, latents, t, embeds, 3.5, TINY_GRID, capture=whole)
    assert ran == ["attn 0", "ff 0", "attn 1", "ff 1", "attn 2", "attn 3"]
    ran.clear()
    assert velocity(model, latents, t, embeds, 3.5, TINY_GRID, capture=part, stop_after_block=1) is None
    assert ran == ["attn 0", "ff 0", "attn 1"]  # the last block's layers behind its attention are not needed
    for a, b in zip(whole.columns, part.columns, strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.equal(whole.columns[0], whole.columns[1])  # in the order asked for: block 1, then block 0
    assert velocity(model, latents, t, embeds, 3.5, TINY_GRID) is not None  # nothing is left behind


def test_checkpointing_gives_the_same_gradients() -> None:
    latents, t, embeds = tiny_inputs()
    model = tiny_transformer()
    parameters = add_adapter(model, ["attn.add_q_proj", "attn.add_k_proj"], rank=2, alpha=2, seed=0)
    generator = torch.Generator().manual_seed(4)
    for parameter in parameters:
        parameter.data.normal_(std=0.2, generator=generator)

    def gradients() -> list[torch.Tensor]:
        capture = AttentionCapture(torch.ones(1, TINY_TEXT), [0, 1])
        out = velocity(model, latents, t, embeds, 3.5, TINY_GRID, capture=capture)
        loss = out.pow(2).mean() + sum(columns.mean() for columns in capture.columns)
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))

    plain = gradients()
    model.enable_gradient_checkpointing()
    for a, b in zip(plain, gradients(), strict=True):
        assert a is not None and a.abs().max() > 0
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("blocks", [[4], [-3], []])
def test_blocks_that_do_not_exist(blocks: list[int]) -> None:
    latents, t, embeds = tiny_inputs()
    with pytest.raises(ConfigError, match="4 blocks"):
        velocity(
            tiny_transformer(),
            latents,
            t,
            embeds,
            3.5,
            TINY_GRID,
            capture=AttentionCapture(torch.ones(1, TINY_TEXT), blocks),
        )


def test_velocity_under_bf16_autocast_is_close_and_keeps_its_time() -> None:
    latents, _, embeds = tiny_inputs()
    t = torch.tensor([0.967, 0.203])  # times that bf16 does not hold
    model = tiny_transformer(gain=1.0)
    exact = velocity(model, latents, t, embeds, 3.5, TINY_GRID)
    times: list[torch.Tensor] = []
    model.time_text_embed.time_proj.register_forward_pre_hook(lambda _module, args: times.append(args[0]))
    with torch.autocast("cpu", torch.bfloat16):
        rough = velocity(model, latents, t, embeds, 3.5, TINY_GRID)
    assert rough.dtype == latents.dtype
    assert 1e-5 < (rough - exact).norm() / exact.norm() < 0.05
    torch.testing.assert_close(times[0], t * 1000, rtol=0, atol=0)  # not rounded to bf16


def test_velocity_depends_on_each_of_its_inputs() -> None:
    latents, t, embeds = tiny_inputs()
    model = tiny_transformer()
    base = velocity(model, latents, t, embeds, 3.5, TINY_GRID)
    one = velocity(model, latents[:1], float(t[0]), embeds[0], 3.5, TINY_GRID)
    torch.testing.assert_close(one, base[:1])
    for other in (
        velocity(model, latents, t - 0.2, embeds, 3.5, TINY_GRID),
        velocity(model, latents, t, embeds, 1.0, TINY_GRID),
        velocity(model, latents, t, embeds[[1, 0]], 3.5, TINY_GRID),
        velocity(model, latents, t, embeds, 3.5, TINY_GRID[::-1]),
    ):
        assert (other - base).abs().max() > 1e-4


def test_deleted_tokens_get_no_attention_and_other_prompts_are_as_they_were() -> None:
    latents, t, embeds = tiny_inputs(dtype=torch.float64)
    mask = spans_to_mask([[(1, 3), (5, 6)], []], TINY_TEXT)
    model, seen, outputs = tiny_transformer(dtype=torch.float64), {}, {}
    block = model.transformer_blocks[0]
    handles = [spy(block, seen), block.attn.register_forward_hook(lambda _m, _a, out: outputs.update(out=out))]
    plain = velocity(model, latents, t, embeds, 3.5, TINY_GRID)
    before = outputs["out"]
    changed = velocity(model, latents, t, embeds, 3.5, TINY_GRID, deleted=mask)
    for handle in handles:
        handle.remove()

    columns = naive_columns(block, seen)
    columns[..., :TINY_TEXT] *= 1 - mask.double()[:, None, None]
    attn = block.attn
    value = torch.cat([attn.add_v_proj(seen["encoder_hidden_states"]), attn.to_v(seen["hidden_states"])], 1)
    value = value.unflatten(-1, (attn.heads, -1)).double()
    expected = attn.to_out[0](torch.einsum("bhns,bshd->bnhd", columns, value).flatten(2))
    assert (outputs["out"][0] - expected).abs().max() < 1e-5
    assert not torch.allclose(outputs["out"][1][0], before[1][0], atol=1e-3)  # the text's own attention goes too
    assert torch.allclose(outputs["out"][1][1], before[1][1], atol=1e-10)
    assert not torch.allclose(changed[0], plain[0], atol=1e-3)
    assert torch.allclose(changed[1], plain[1], atol=1e-10)  # nothing was deleted in the second prompt
    assert torch.equal(velocity(model, latents, t, embeds, 3.5, TINY_GRID), plain)
