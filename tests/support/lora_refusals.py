"""Files in models/loras that no Flux.1 can use as a LoRA, and what has to be said about each."""

from __future__ import annotations

import torch
from torch import Tensor

from .lora_layouts import HIDDEN, Layout, N, dotted, native, spelt, under

STEM = "transformer.transformer_blocks.0.attn.to_q"
PLAIN = {f"{STEM}.lora_A.weight": torch.ones(4, HIDDEN), f"{STEM}.lora_B.weight": torch.ones(HIDDEN, 4)}
KOHYA = (".lora_down.weight", ".lora_up.weight")


def pair(name: str, inputs: int = 8, outputs: int = 8, ends: tuple[str, str] = (".lora_A.weight", ".lora_B.weight")):
    return {name + ends[0]: torch.ones(2, inputs), name + ends[1]: torch.ones(outputs, 2)}


def refused(tensors: dict[str, Tensor], *says: str) -> Layout:
    return Layout(tensors, None, says)


def base(name: str, tensors: dict[str, Tensor]) -> Layout:
    return refused(tensors, f"is a LoRA for {name}", "not for FLUX.1")


def blocks(form: str, count: int, inputs: int, outputs: int) -> dict[str, Tensor]:
    return {name: value for i in range(count) for name, value in pair(form.format(i), inputs, outputs).items()}


REFUSED: dict[str, Layout] = {
    # methods that are no sum
    "DoRA of kohya": refused({**PLAIN, f"{STEM}.dora_scale": torch.ones(HIDDEN)}, "is a DoRA"),
    "DoRA of PEFT": refused({**PLAIN, f"{STEM}.lora_magnitude_vector": torch.ones(HIDDEN)}, "is a DoRA"),
    "DoRA of diffusers": refused({**PLAIN, f"{STEM}.lora_magnitude_vector.default.weight": torch.ones(8)}, "is a DoRA"),
    "OFT of kohya": refused({"lora_unet_double_blocks_0_img_mlp_0.oft_blocks": torch.ones(2, 4, 4)}, "is an OFT"),
    "OFT of PEFT": refused({f"{STEM}.oft_R.weight": torch.ones(2, 4)}, "is an OFT"),
    "BOFT": refused({f"{STEM}.boft_R": torch.ones(2, 4)}, "is a BOFT"),
    "GLoRA": refused({f"lycoris_x.{x}.weight": torch.ones(2, 2) for x in ("a1", "a2", "b1", "b2")}, "is a GLoRA"),
    "IA3": refused({f"base_model.model.{STEM}.ia3_l": torch.ones(HIDDEN, 1)}, "is an IA³"),
    "VeRA": refused({"base_model.vera_A": torch.ones(2, 2), f"{STEM}.vera_lambda_d": torch.ones(2)}, "is a VeRA"),
    "AdaLoRA": refused({**PLAIN, f"{STEM}.lora_E": torch.ones(4, 1)}, "is an AdaLoRA"),
    "FourierFT": refused({f"{STEM}.fourierft_spectrum": torch.ones(4)}, "another method of PEFT's"),
    "kernels": refused(
        {f"{STEM}.{x}": torch.ones(4, HIDDEN) for x in ("hada_w1_a", "hada_w1_b", "hada_t1")}, "kernels of convolutions"
    ),
    "T-LoRA": refused({"lycoris_norm_out_linear.lambda_layer": torch.ones(1, 4)}, "is a T-LoRA"),
    # nothing that this pack can apply
    "modules_to_save": refused(
        {
            **PLAIN,
            "base_model.model.x_embedder.weight": torch.ones(HIDDEN, 16),
            "base_model.model.x_embedder.bias": torch.ones(HIDDEN),
        },
        "whole layers",
        "x_embedder",
    ),
    "modules_to_save, with an adapter's name": refused(
        {**PLAIN, "transformer.x_embedder.modules_to_save.default.weight": torch.ones(HIDDEN, 16)}, "whole layers"
    ),
    "a whole model": refused(
        {
            "model.diffusion_model.img_in.weight": torch.ones(HIDDEN, 16),
            "model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.weight": torch.ones(8),
        },
        "is a whole model and no LoRA",
    ),
    "a whole model, as Black Forest Labs name it": refused(
        {"img_in.weight": torch.ones(HIDDEN, 16), "double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(8)},
        "is a whole model and no LoRA",
    ),
    "a control LoRA": refused(
        {
            **spelt({"img_in": N["img_in"]}, dotted(""), ".lora_A.weight", ".lora_B.weight", ""),
            "double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(HIDDEN),
        },
        "is a control LoRA",
    ),
    "a control LoRA, as ComfyUI names it": refused(
        {**PLAIN, "diffusion_model.img_in.reshape_weight": torch.ones(2)}, "is a control LoRA"
    ),
    "text encoders only": refused(
        pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", ends=KOHYA), "text encoders or embeddings only"
    ),
    "embeddings only": refused(
        {"bundle_emb.x.string_to_param.*": torch.ones(2, 4)}, "text encoders or embeddings only"
    ),
    "biases only": refused({f"{STEM}.diff_b": torch.ones(HIDDEN)}, "only biases or norms"),
    "a checkpoint of all parts": refused(
        {
            "model.diffusion_model.img_in.weight": torch.ones(HIDDEN, 16),
            "first_stage_model.decoder.mid.block_1.conv1.weight": torch.ones(2, 2, 3, 3),
        },
        "is a whole model and no LoRA",
    ),
    "an autoencoder": refused(
        {"decoder.mid_block.resnets.0.conv1.weight": torch.ones(2, 2, 3, 3)}, "is not a Flux LoRA"
    ),
    # other bases
    "an unknown base with text encoders": refused(
        {**pair("transformer.other"), **pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", ends=KOHYA)},
        "is not a Flux LoRA",
    ),
    "FLUX.2, diffusers": base("FLUX.2", pair("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj")),
    "FLUX.2, feed forward": base("FLUX.2", pair("transformer.transformer_blocks.0.ff.linear_in")),
    "FLUX.2, modulation": base("FLUX.2", pair("diffusion_model.double_stream_modulation_img.lin")),
    "FLUX.2, native widths": base("FLUX.2", pair("diffusion_model.single_blocks.0.linear1", 48, 9 * 48)),
    "FLUX.2, musubi": base("FLUX.2", pair("lora_unet_double_blocks_0_img_mlp_0", 48, 6 * 48, KOHYA)),
    "FLUX.2, musubi klein": base(
        "FLUX.2", {**pair("double_blocks.0.img_attn_qkv", 48, 144), **pair("single_blocks.0.linear2", 4 * 48, 48)}
    ),
    "Qwen-Image": base("Qwen-Image", pair("transformer.transformer_blocks.0.img_mlp.net.0.proj")),
    "Qwen-Image, attention only": base(
        "Qwen-Image", blocks("transformer.transformer_blocks.{}.attn.to_q", 60, 3072, 3072)
    ),
    "Z-Image": base("Z-Image", pair("diffusion_model.layers.0.attention.to_q")),
    "Z-Image, refiner": base("Z-Image", pair("lora_unet_noise_refiner_0_attention_qkv", ends=KOHYA)),
    "Lumina 2": base("Z-Image or Lumina 2", pair("diffusion_model.layers.0.attention.qkv")),
    "SDXL, kohya": base("SDXL", pair("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 2048, ends=KOHYA)),
    "SDXL, diffusers": base("SDXL", pair("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 2048)),
    "Stable Diffusion 1.5": base(
        "Stable Diffusion 1.5",
        pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 768, ends=KOHYA),
    ),
    "Stable Diffusion 3, diffusers": base(
        "Stable Diffusion 3", blocks("transformer.transformer_blocks.{}.attn.add_q_proj", 2, 1536, 1536)
    ),
    "Stable Diffusion 3.5, diffusers": base(
        "Stable Diffusion 3.5", blocks("transformer.transformer_blocks.{}.attn.to_k", 2, 2432, 2432)
    ),
    "Stable Diffusion 3, native": base("Stable Diffusion 3", pair("diffusion_model.joint_blocks.0.x_block.attn.qkv")),
    "Stable Diffusion 3, kohya": base(
        "Stable Diffusion 3", pair("lora_unet_joint_blocks_0_context_block_mlp_fc1", ends=KOHYA)
    ),
    "Wan": base("Wan", pair("diffusion_model.blocks.0.self_attn.q")),
    "Wan, musubi": base("Wan", pair("lora_unet_blocks_0_cross_attn_k", ends=KOHYA)),
    "Wan, Fun": base("Wan", pair("lora_unet__blocks_0_ffn_0", ends=KOHYA)),
    "HunyuanVideo": base("HunyuanVideo", pair("transformer.double_blocks.0.img_mlp.fc1")),
    "HunyuanVideo, kohya": base("HunyuanVideo", pair("lora_unet_single_blocks_0_modulation_linear", ends=KOHYA)),
    "Chroma": base("Chroma", {**pair("diffusion_model.distilled_guidance_layer.layers.0.in_layer"), **PLAIN}),
    "HiDream": base("HiDream", pair("diffusion_model.double_stream_blocks.0.block.attn1.to_q")),
    "LTX-Video": base("LTX-Video", pair("diffusion_model.transformer_blocks.0.attn1.to_q")),
    "PixArt": base("LTX-Video, PixArt", pair("transformer.adaln_single.linear")),
    "AuraFlow": base("AuraFlow", pair("transformer.joint_transformer_blocks.0.attn.to_q")),
    "Mochi": base("Mochi", pair("diffusion_model.blocks.0.attn.qkv_x")),
    "Cosmos": base("Cosmos", pair("diffusion_model.blocks.0.self_attn.q_proj")),
    "Stable Cascade": base("Stable Cascade", pair("lora_prior_unet_down_blocks_0_2_attention_attn_to_q", ends=KOHYA)),
    "unknown": refused(pair("transformer.some.other.layer"), "is not a Flux LoRA"),
    # damage
    "numbers that are none": refused(
        {**PLAIN, f"{STEM}.lora_B.weight": torch.full((HIDDEN, 4), float("nan"))}, "infinite"
    ),
    "products that are too large": refused(
        {
            f"{STEM}.hada_{x}": torch.full((4, HIDDEN) if x.endswith("b") else (HIDDEN, 4), 1e30)
            for x in ("w1_a", "w1_b", "w2_a", "w2_b")
        },
        "too large",
    ),
    "integers": refused({**PLAIN, f"{STEM}.lora_A.weight": torch.ones(4, HIDDEN, dtype=torch.int8)}, "wrong kind"),
    "half of it": refused({f"{STEM}.lora_B.weight": torch.ones(HIDDEN, 4)}, "lacks lora_A"),
    "two adapters": refused(
        {name.replace(".weight", f".{one}.weight"): value for name, value in PLAIN.items() for one in ("a", "b")},
        "two LoRAs of",
    ),
    "two dialects of one layer": refused(
        {
            **PLAIN,
            **native(under("lora_unet_"), KOHYA).tensors,
            "x_embedder.lora_A.weight": torch.ones(4, 16),
            "x_embedder.lora_B.weight": torch.ones(HIDDEN, 4),
        },
        "two LoRAs of",
    ),
    "a LoRA and a LoHa of one layer": refused(
        {**PLAIN, f"{STEM}.hada_w1_a": torch.ones(HIDDEN, 2)}, "a LoHa and a LoRA"
    ),
    "3x3 kernels": refused(
        {f"{STEM}.lora_A.weight": torch.ones(4, HIDDEN, 3, 3), f"{STEM}.lora_B.weight": torch.ones(HIDDEN, 4, 1, 1)},
        "do not multiply",
    ),
}
