"""Run by test_native_attention.py in a process that has the host on its path: joint attention in the host's own Flux.

Usage: attention_probe.py FOLDER. Reads FOLDER/probe.json, writes FOLDER/result.safetensors and FOLDER/result.json.
"""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy.cli_args import args

REQUEST = json.loads((Path(sys.argv[1]) / "probe.json").read_text())
args.use_pytorch_cross_attention = REQUEST["pytorch_attention"]

import torch  # noqa: E402
from native_probe import call, comfy, host_nodes, nodes_flux, pack_module  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

nodes = pack_module("nodes.attention")
taps = pack_module("nodes.joint_attention")
errors = pack_module("training.errors")
PROMPT = REQUEST["prompt"]


class Lab:
    """One model with what sampling it needs."""

    def __init__(self, folder: str) -> None:
        source = pack_module("training.models.source").FluxSource("diffusers", folder=folder, precision="fp32")
        native = pack_module("nodes.native").load_native(source)
        self.model, self.clip, self.vae = native.model, native.clip, native.vae

    def conditioning(self, prompt: str) -> list:
        return call(nodes_flux.FluxGuidance, host_nodes.CLIPTextEncode().encode(self.clip, prompt)[0], 3.5)[0]

    def sample(
        self,
        model: Any,
        *,
        positive: list | None = None,
        size: tuple[int, int] = (16, 16),
        batch: int = 1,
        cfg: float = 1.0,
        sampler: str = "euler",
    ) -> torch.Tensor:
        """Latents after four steps of the stock KSampler from seed 5; `size` in latents."""
        positive = positive or self.conditioning(PROMPT)
        latent = {"samples": torch.zeros(batch, 16, *size)}
        negative = self.conditioning("a dog on a red background")
        made = host_nodes.KSampler().sample(model, 5, 4, cfg, sampler, "simple", positive, negative, latent, 1.0)
        return made[0]["samples"]

    def record(self, **changes: Any) -> tuple:
        settings = {"blocks": "all", "t_start": 1.0, "t_end": 0.0, "heads": "mean", "tokens": 128, **changes}
        return nodes.RecordJointAttention.execute(self.model, **settings).result

    def sampled(self, settings: dict | None = None, **changes: Any) -> Any:
        """The recording of one run."""
        model, recording = self.record(**(settings or {}))
        self.sample(model, **changes)
        return recording


def refusal(function: Callable, *values: Any, **named: Any) -> str:
    try:
        function(*values, **named)
    except errors.ErasureError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def other_override(seen: list) -> Callable:
    """Another pack's: changes the output, and chains."""

    def override(func: Callable, q: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        seen.append(named["transformer_options"]["block_index"])
        return 0.9 * func(q, *rest, **named)

    return override


def with_override(model: Any, override: Callable) -> Any:
    model = model.clone()
    options = model.model_options["transformer_options"]
    inner = options.get("optimized_attention_override")

    def chained(func: Callable, *rest: Any, **named: Any) -> torch.Tensor:
        return override(func if inner is None else lambda *r, **n: inner(func, *r, **n), *rest, **named)

    options["optimized_attention_override"] = chained
    return model


def naive_deletion(tokens: list[int], blocks: int) -> Callable:
    """softmax in float64, columns set to zero, times the values."""

    def override(func: Callable, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any, **named: Any):
        options = named["transformer_options"]
        if options["block_type"] != "double" or options["block_index"] >= blocks:
            return func(q, k, v, *rest, **named)
        weights = (q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        weights[..., tokens] = 0
        return (weights @ v.double()).to(v.dtype).transpose(1, 2).flatten(2)

    return override


@torch.inference_mode()
def main(folder: Path) -> None:
    lab = Lab(REQUEST["folder"])
    out: dict[str, torch.Tensor] = {}
    facts: dict[str, Any] = {"attention": comfy.ldm.modules.attention.optimized_attention.__name__}

    # the picture stays; every head of every block
    plain = lab.sample(lab.model)
    model, recording = lab.record(heads="each")
    out["plain"], out["recorded"] = plain, lab.sample(model)
    out["cfg_plain"] = lab.sample(lab.model, cfg=2.0)
    out["maps"] = recording.maps
    facts.update(times=recording.times, unit=recording.unit, names=recording.names())
    mean = lab.sampled()
    out["mean"] = mean.maps
    out["base_after"] = lab.sample(lab.model)  # the model it was not put on
    facts["tokens_5"] = list(lab.sampled({"tokens": 5, "blocks": "s2, 0"}).maps.shape)
    facts["range"] = lab.sampled({"t_start": 0.8, "t_end": 0.3}).times

    # Inspect Image, for the engine to repeat
    image = host_nodes.VAEDecode().decode(lab.vae, {"samples": plain})[0]
    inspected = nodes.InspectImage.execute(
        lab.model, lab.clip, lab.vae, image, PROMPT, 0.6, 9, 3.5, "all", "each", 128
    ).result[0]
    out["image"], out["inspected"] = image, inspected.maps

    # kinds of runs
    out["cfg"] = lab.sampled(cfg=3.0).maps
    out["batch"] = lab.sampled(batch=2, cfg=2.0).maps
    for name, size in (("wide", (16, 24)), ("odd", (15, 17))):
        found = lab.sampled(size=size)
        facts[name] = [found.grid, list(found.maps.shape)]
    reference = call(comfy_reference(), lab.conditioning(PROMPT), {"samples": plain})[0]
    found = lab.sampled(positive=reference)
    facts["reference"] = [found.unit, list(found.maps.shape)]
    facts["heun"] = lab.sampled(sampler="heun").times
    schnell = Lab(REQUEST["schnell"])
    facts["schnell"] = list(schnell.sampled().maps.shape)

    # other packs' overrides, before and after; a clone further down the graph
    for name, first in (("inner", True), ("outer", False)):
        seen: list[int] = []
        if first:
            changed = with_override(lab.model, other_override(seen))
            model, recording = nodes.RecordJointAttention.execute(changed, "all", 1.0, 0.0, "mean", 128).result
        else:
            model, recording = lab.record()
            model = changed = with_override(model, other_override(seen))
        out[f"{name}_override"] = lab.sample(model)
        out[f"{name}_maps"] = recording.maps
        facts[f"{name}_calls"] = len(seen)
    out["override_alone"] = lab.sample(with_override(lab.model, other_override([])))
    model, recording = lab.record()
    lab.sample(model.clone().clone())
    facts["through_clones"] = len(recording.times)

    # concepts, of which one is not in the prompt
    settings = ("double", 1.0, 0.0, "mean", 128, "concepts", "cat, penguin, background")
    model, recording = nodes.RecordJointAttention.execute(lab.model, *settings, lab.clip).result
    out["concepts_picture"], out["concepts"] = lab.sample(model, cfg=2.0), recording.maps
    facts["concepts"] = [recording.kind, list(recording.labels)]
    drawn = nodes.TokenHeatmaps.execute(recording, image, lab.clip, PROMPT, "", 0, "ember", 0.5, "shared", "").result[0]
    facts["concepts_drawn"] = list(drawn.shape)

    # deletion against its formula
    words = taps.read_clip_prompt(lab.clip, PROMPT)
    tokens = list(words.phrase("car").tokens)
    deleted = nodes.DeleteAttention.execute(lab.model, lab.clip, PROMPT, "car", "double", 1.0, 0.0).result[0]
    out["deleted"] = lab.sample(deleted, cfg=2.0)
    negative_kept = nodes.DeleteAttention.execute(lab.model, lab.clip, PROMPT, "car", "double", 1.0, 0.0).result[0]
    out["deleted_plain"] = lab.sample(negative_kept)
    out["deleted_naive"] = lab.sample(with_override(lab.model, naive_deletion(tokens, 3)))
    absent = nodes.DeleteAttention.execute(lab.model, lab.clip, PROMPT, "caar", "double", 1.0, 0.0).result[0]
    facts["absent_is_base"] = absent is lab.model
    both, after = nodes.RecordJointAttention.execute(deleted, "double", 1.0, 0.0, "mean", 128).result
    lab.sample(both)
    facts["record_on_deletion"] = len(after.times)

    # sentences
    two = host_nodes.ConditioningCombine().combine(lab.conditioning(PROMPT), lab.conditioning("a cat"))[0]
    mask = {"attention_mask": torch.ones(1, 96, 96), "attention_mask_img_shape": (8, 8)}
    masked = [[c, {**options, **mask}] for c, options in lab.conditioning(PROMPT)]
    empty = lab.record(t_start=0.02, t_end=0.01)
    lab.sample(empty[0])
    facts["refusals"] = {
        "two prompts": refusal(lab.sampled, positive=two),
        "mask": refusal(lab.sampled, positive=masked),
        "blocks": refusal(lab.record, blocks="9"),
        "range": refusal(lab.record, t_start=0.2, t_end=0.5),
        "empty": refusal(lambda: empty[1].maps),
        "one concept": refusal(nodes.RecordJointAttention.execute, lab.model, *settings[:-1], "cat", lab.clip),
        "no clip": refusal(nodes.RecordJointAttention.execute, lab.model, *settings),
        "single": refusal(nodes.RecordJointAttention.execute, lab.model, "all", *settings[1:], lab.clip),
        "no phrase": refusal(nodes.DeleteAttention.execute, lab.model, lab.clip, PROMPT, " ", "double", 1.0, 0.0),
    }

    # words, with the host's prompt weights
    weighted = taps.read_clip_prompt(lab.clip, "a (red car:1.3), a \\(cat\\)")
    facts["weighted"] = [[word.text for word in weighted.words], weighted.length]

    # nothing holds a recording but the graph
    model, recording = lab.record()
    lab.sample(model)
    watched = weakref.ref(recording)
    del model, recording
    gc.collect()
    facts["freed"] = watched() is None

    save_file({name: tensor.contiguous().clone() for name, tensor in out.items()}, folder / "result.safetensors")
    (folder / "result.json").write_text(json.dumps(facts))


def comfy_reference() -> type:
    from comfy_extras import nodes_edit_model

    return nodes_edit_model.ReferenceLatent


if __name__ == "__main__":
    main(Path(sys.argv[1]))
