"""Builds the demo model's tokenizers and trains its T5 and CLIP encoders on labelled captions, before any image.

A large language encoder gives a word a vector of its own that is close to its synonyms' and nearly independent of the
rest of the sentence. A small encoder trained only through Flux's image loss does not find this in reasonable time, so
each T5 token is taught its own word's vector, and no other token's: the concept sits in its own tokens.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from . import stages
from .scenes import PREFIXES, Span, caption_spans, caption_text, random_scene
from .vocabulary import BACKGROUNDS, COUNTS, NOUNS, RELATIONS, STYLES, plural

SEQUENCE_LENGTH = 32
WIDTH = 128
SYNONYM_SPREAD = 0.35  # size of a word's own part beside the part it shares with its synonyms
ORDER_SIZE = 0.8
SIZES = {
    "noun": len(NOUNS),
    "style": len(STYLES),
    "background": len(BACKGROUNDS),
    "relation": len(RELATIONS),
    "count": len(COUNTS),
}


def words() -> list[str]:
    """Every word of the captions, sorted: each becomes one T5 piece."""
    texts = list(PREFIXES) + list(STYLES) + list(BACKGROUNDS) + list(RELATIONS) + list(COUNTS)
    texts += ["a an the in on of and with no background style art at by to my photo picture one thing nothing empty"]
    for noun in NOUNS:
        texts += [noun.name, plural(noun.name), *noun.synonyms, *(plural(s) for s in noun.synonyms)]
    return sorted({word for text in texts for word in text.lower().split()})


def build_t5_tokenizer(folder: Path) -> T5Tokenizer:
    """A Unigram tokenizer in T5's form: whole known words (with and without a capital), single letters for all else."""
    characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.!?'\"-:;()"
    known = words()
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [("▁" + word, -4.0) for word in known] + [("▁" + word.capitalize(), -4.0) for word in known]
    pieces += [(end, -8.0) for end in ("ish", "like", "oid", "let", "ing", "ed")]
    pieces += [("▁" + start, -8.0) for start in ("super", "mega", "un", "pre")]
    pieces += [("▁", -9.0)] + [(c, -9.0) for c in characters]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=SEQUENCE_LENGTH)
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-level BPE tokenizer in CLIP's form, its merges learnt from captions."""
    rng = random.Random(0)
    corpus = [caption_text(caption_spans(rng, random_scene(rng))) for _ in range(20000)]
    special = ["<|startoftext|>", "<|endoftext|>"]
    blank = CLIPTokenizer(vocab={token: i for i, token in enumerate(special)}, merges=[])
    learner = Tokenizer(models.BPE(unk_token=special[1], end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = (
        blank.backend_tokenizer.normalizer,
        blank.backend_tokenizer.pre_tokenizer,
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        special_tokens=special,
        show_progress=False,
    )
    learner.train_from_iterator(corpus, trainer)
    model = json.loads(learner.to_str())["model"]
    tokenizer = CLIPTokenizer(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], model_max_length=77
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def t5_config(vocabulary: int) -> T5Config:
    return T5Config(
        vocab_size=vocabulary,
        d_model=WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=32,
        relative_attention_max_distance=64,
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
    )


def clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=256,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class Targets:
    """The vector each token should get: a meaning, shared by synonyms, and a smaller part for its own word."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.meaning = {kind: torch.randn(size, WIDTH, generator=generator) for kind, size in SIZES.items()}
        self.order = ORDER_SIZE * torch.randn(2, WIDTH, generator=generator)
        self.pad = torch.randn(WIDTH, generator=generator)
        self.end = torch.randn(WIDTH, generator=generator)
        self.word: dict[str, torch.Tensor] = {word: torch.randn(WIDTH, generator=generator) for word in words()}

    def token(self, span: Span, word: str) -> torch.Tensor:
        own = self.word.get(word)
        if not span.kind:
            return self.pad if own is None else own
        vector = self.meaning[span.kind][span.value].clone()
        if span.kind == "noun":
            vector += self.order[span.order]
        if own is not None:
            vector += SYNONYM_SPREAD * own
        return vector

    def tokens(self, spans: list[Span], ids: list[int], offsets: list[tuple[int, int]], length: int) -> torch.Tensor:
        """Targets [length, WIDTH] of a tokenised caption; `offsets` are the tokens' character ranges in it."""
        rows, text = [], caption_text(spans)
        starts, position = [], 0
        for span in spans:
            starts.append(position)
            position += len(span.text) + 1
        for token, (begin, end) in zip(ids, offsets, strict=False):
            if token == 0:
                rows.append(self.pad)
            elif token == 1:
                rows.append(self.end)
            else:
                middle = max(begin, end - 1)
                index = max(i for i, start in enumerate(starts) if start <= middle)
                left = text.rfind(" ", 0, middle + 1) + 1
                right = text.find(" ", middle)
                word = text[left : right if right >= 0 else len(text)]
                rows.append(self.token(spans[index], word.strip(",.!?").lower()))
        target = torch.stack(rows)[:length]
        return target / target.square().mean(-1, keepdim=True).sqrt()

    def pooled(self, spans: list[Span]) -> torch.Tensor:
        """Target [WIDTH] of the pooled CLIP output: the sum of what the caption names."""
        parts = [
            self.meaning[span.kind][span.value] + (self.order[span.order] if span.kind == "noun" else 0)
            for span in spans
            if span.kind
        ]
        total = torch.stack(parts).sum(0) if parts else self.end
        return total / total.square().mean().sqrt()


def _captions(seed: int, count: int) -> list[list[Span]]:
    rng = random.Random(seed)
    lists = []
    for _ in range(count):
        if rng.random() < 0.02:
            lists.append([])
            continue
        noise = 0.7 if rng.random() < 0.6 else 0.0  # odd spellings are learnt here, where they cost nothing
        lists.append(caption_spans(rng, random_scene(rng), synonyms=0.55, noise=noise))
    return lists


def train_text_encoders(folder: Path, device: torch.device, steps: int = 3100, batch: int = 96) -> None:
    """Write tokenizer, tokenizer_2, text_encoder and text_encoder_2 below `folder`."""
    torch.manual_seed(0)
    t5_tokenizer = build_t5_tokenizer(folder / "tokenizer_2")
    clip_tokenizer = build_clip_tokenizer(folder / "tokenizer")
    t5 = T5EncoderModel(t5_config(len(t5_tokenizer))).to(device)
    clip = CLIPTextModel(clip_config(clip_tokenizer)).to(device)
    targets = Targets()
    parameters = [*t5.parameters(), *clip.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0)

    def step_fn(step: int) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * stages.cosine(step, steps, 50)
        spans = _captions(step, batch)
        texts = [caption_text(s) for s in spans]
        tokens = t5_tokenizer(
            texts, padding="max_length", max_length=SEQUENCE_LENGTH, truncation=True, return_offsets_mapping=True
        )
        goal = torch.stack(
            [
                targets.tokens(s, i, o, SEQUENCE_LENGTH)
                for s, i, o in zip(spans, tokens["input_ids"], tokens["offset_mapping"], strict=False)
            ]
        )
        clip_ids = clip_tokenizer(
            texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids[:, :40]
        clip_ids[:, -1] = clip_tokenizer.eos_token_id
        t5_loss = (
            (t5(torch.tensor(tokens["input_ids"], device=device)).last_hidden_state - goal.to(device)).square().mean()
        )
        pooled = clip(clip_ids.to(device)).pooler_output
        clip_loss = (pooled - torch.stack([targets.pooled(s) for s in spans]).to(device)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        (t5_loss + clip_loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return {"t5": t5_loss.item(), "clip": clip_loss.item()}

    stages.train("text encoders", steps, step_fn, {"t5": t5, "clip": clip, "optimizer": optimizer}, folder / "text.pt")
    clip.save_pretrained(folder / "text_encoder")
    t5.save_pretrained(folder / "text_encoder_2")
