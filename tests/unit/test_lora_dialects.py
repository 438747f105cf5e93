"""Reading LoRA files of others: every dialect gives the change that its trainer meant, and nothing else is read."""

from __future__ import annotations

import io
import json
import pickle
import random
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from tests.support.loras import (
    HIDDEN,
    NATIVE,
    diffusers_dialects,
    dotted,
    in_native_layout,
    native_dialects,
    native_lora,
    random_lora,
    relative_error,
)
from training.errors import ErasureError, LoraError
from training.lora.dialects import parse_key
from training.lora.files import convert, describe, merge_files
from training.lora.format import open_lora, read_lora, write_lora

EXACT = 1e-6
LORA = native_lora()
MEANT = {name: alpha / len(a) * (b.double() @ a.double()) for name, (a, b, alpha) in LORA.items()}


@pytest.mark.parametrize("dialect", native_dialects(LORA))
def test_native_dialects_and_their_conversion(dialect: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file(native_dialects(LORA)[dialect], path)
    file = open_lora(path)
    assert file.dialect == dialect.split(",")[0] and file.host_format
    assert sorted(file.weights) == sorted(part for _, _, parts in NATIVE.values() for part in parts)
    assert relative_error(in_native_layout(file.weights), MEANT) < EXACT
    convert(path, tmp_path / "ours.safetensors")
    again = open_lora(tmp_path / "ours.safetensors")
    assert again.dialect == "diffusers" and again.host_format
    assert relative_error(in_native_layout(again.weights), MEANT) < EXACT


@pytest.mark.parametrize(
    "dialect", [*diffusers_dialects({}), "without prefix", "peft", "peft, transformer", "adapter name", "bare"]
)
def test_diffusers_dialects(dialect: str, tmp_path: Path) -> None:
    weights = random_lora(0, alpha=2.0, targets=("attn.to_out.0", "attn.to_q"), single=("attn.to_k",))
    weights["proj_out"] = (torch.ones(2, HIDDEN), torch.ones(64, 2), 2.0)
    tensors = {
        **diffusers_dialects(weights),
        "without prefix": dotted(weights, ""),
        "peft": dotted(weights, "base_model.model."),
        "peft, transformer": dotted(weights, "base_model.model.transformer."),
        "adapter name": dotted(weights, "transformer.", ("lora_A.default.weight", "lora_B.default.weight")),
        "bare": dotted(weights, "transformer.", ("lora_A", "lora_B")),
    }[dialect]
    path = tmp_path / "theirs.safetensors"
    save_file(tensors, path)
    file = open_lora(path)
    assert file.host_format == (dialect not in ("without prefix", "peft", "peft, transformer"))
    assert file.weights.keys() == weights.keys()
    for name, (a, b, alpha) in weights.items():
        assert torch.equal(file.weights[name][0], a) and torch.equal(file.weights[name][1], b)
        assert file.weights[name][2] == alpha


def test_xlabs_processors(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    layers = {
        "double_blocks.1.processor.qkv_lora1": ("double_blocks.1.img_attn.qkv", 1, 3),
        "double_blocks.1.processor.qkv_lora2": ("double_blocks.1.txt_attn.qkv", 1, 3),
        "double_blocks.0.processor.proj_lora1": ("double_blocks.0.img_attn.proj", 1, 1),
        "double_blocks.0.processor.proj_lora2": ("double_blocks.0.txt_attn.proj", 1, 1),
        "single_blocks.2.processor.qkv_lora": ("single_blocks.2.linear1", 1, 3),
        "single_blocks.2.processor.proj_lora": ("single_blocks.2.linear2", 5, 1),
    }
    tensors, meant = {}, {}
    for name, (native, inputs, outputs) in layers.items():
        a, b = (
            torch.randn(4, inputs * HIDDEN, generator=generator),
            torch.randn(outputs * HIDDEN, 4, generator=generator),
        )
        tensors |= {f"{name}.down.weight": a, f"{name}.up.weight": b}
        change = b.double() @ a.double()
        padding = 7 * HIDDEN - len(change) if native.endswith("linear1") else 0
        meant[native] = torch.cat([change, torch.zeros(padding, change.shape[1])])
    save_file(tensors, tmp_path / "x.safetensors")
    file = open_lora(tmp_path / "x.safetensors")
    assert file.dialect == "xlabs"
    assert relative_error(in_native_layout(file.weights), meant) < EXACT


def test_block_diagonal_qkv_is_taken_apart(tmp_path: Path) -> None:
    """Trainers that fuse separate LoRAs of q, k and v triple the rank; each part needs its own third of it alone."""
    a, b = torch.randn(6, HIDDEN), torch.zeros(3 * HIDDEN, 6)
    for i in range(3):
        b[i * HIDDEN : (i + 1) * HIDDEN, 2 * i : 2 * i + 2] = torch.randn(HIDDEN, 2)
    save_file(dotted({"double_blocks.1.txt_attn.qkv": (a, b, 3.0)}, "diffusion_model."), tmp_path / "x.safetensors")
    weights, _ = read_lora(tmp_path / "x.safetensors")
    assert [len(a) for a, _, _ in weights.values()] == [2, 2, 2]
    meant = {"double_blocks.1.txt_attn.qkv": 3.0 / 6 * (b.double() @ a.double())}
    assert relative_error(in_native_layout(weights), meant) < EXACT


def test_the_authors_own_file(tmp_path: Path) -> None:
    """76 bf16 tensors of rank 8, no alpha, no metadata; here with narrow layers."""
    tensors = {
        f"transformer.transformer_blocks.{i}.attn.add_{p}_proj.lora_{m}.weight": torch.randn(
            *((8, HIDDEN) if m == "A" else (HIDDEN, 8)), dtype=torch.bfloat16
        )
        for i in range(19)
        for p in "qk"
        for m in "AB"
    }
    path = tmp_path / "nude.safetensors"
    save_file(tensors, path)
    shown = describe(path)
    expected = {
        "concept": None,
        "method": None,
        "rank": 8,
        "targets": ["attn.add_k_proj", "attn.add_q_proj"],
        "tensors": 76,
        "parameters": 38 * 8 * 2 * HIDDEN,
        "host_format": True,
        "dialect": "diffusers",
        "dtypes": ["bfloat16"],
        "blocks": 19,
    }
    assert {key: shown[key] for key in expected} == expected
    weights, metadata = read_lora(path)
    assert metadata == {} and all(alpha == 8 for _, _, alpha in weights.values())
    report = merge_files([path, path], tmp_path / "twice.safetensors", "normalised")
    assert report["rank"] == 8 and report["parameters"] == shown["parameters"]


@pytest.mark.parametrize("key", ["lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoder.text_model.x"])
def test_text_encoders_are_left_out_and_named(key: str, tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    ends = (".alpha", ".lora_down.weight", ".lora_up.weight")
    text = {f"{key}{end}": torch.ones(2, 2) for end in ends}
    save_file(native_dialects(LORA)["kohya"] | text, path)
    file = open_lora(path)
    assert relative_error(in_native_layout(file.weights), MEANT) < EXACT
    assert len(file.notes) == 1 and "text encoders were left out" in file.notes[0] and key in file.notes[0]
    report = merge_files([path], tmp_path / "m.safetensors", "sum")
    assert file.notes[0] in report["notes"]
    save_file(text, path)
    with pytest.raises(LoraError, match="not a Flux LoRA"):
        open_lora(path)


def test_keys_of_other_models_are_no_flux() -> None:
    for key in (
        "lora_unet_input_blocks_4_1_proj_in.lora_down.weight",  # SDXL
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight",  # Wan
        "transformer.double_blocks.0.img_mlp.fc1.lora_A.weight",  # HunyuanVideo
        "transformer.transformer_blocks.0.attn.to_q.weight",
        "transformer.transformer_blocks.0.attn.to_q.lora_A.bias",
        "transformer.transformer_blocks..attn.to_q.lora_A.weight",
        "transformer.transformer_blocks.0.attn.qkv_lora1.down.weight",
        ".lora_A.weight",
        "",
    ):
        assert parse_key(key) is None, key


PAIR = dotted(random_lora(0, targets=("attn.to_q",), blocks=1), "transformer.")
STEM = "transformer.transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{STEM}.dora_scale": torch.ones(HIDDEN)}, "is a DoRA"),
        ({"lora_unet_double_blocks_0_img_mlp_0.hada_w1_a": torch.ones(2, 2)}, "lacks hada_w1_b"),
        ({"lora_unet_double_blocks_0_img_mlp_0.lokr_w1": torch.ones(2, 2)}, "lacks lokr_w2_a"),
        ({f"{STEM}.lora_A.weight": torch.full((4, HIDDEN), float("nan"))}, "infinite or undefined"),
        ({f"{STEM}.alpha": torch.tensor(float("inf"))}, "infinite or undefined"),
        ({f"{STEM}.alpha": torch.ones(2)}, "wrong kind"),
        ({f"{STEM}.lora_A.weight": torch.ones(4, HIDDEN, dtype=torch.int32)}, "wrong kind"),
        ({f"{STEM}.lora_A.weight": torch.ones(4, HIDDEN, 3, 3)}, "do not multiply"),
        ({f"{STEM}.lora_A.weight": torch.ones(3, HIDDEN)}, "do not multiply"),
        ({f"{STEM}.lora_A.weight": torch.ones(0, HIDDEN), f"{STEM}.lora_B.weight": torch.ones(HIDDEN, 0)}, "multiply"),
        ({f"{STEM}.lora_A.weight": torch.ones(4, HIDDEN + 1)}, "fits no Flux"),
        ({STEM.replace("0", "1") + ".lora_B.weight": torch.ones(HIDDEN, 4)}, "lacks lora_A"),
        (dotted(random_lora(1, targets=("attn.to_k",), hidden=16), "transformer."), "fits no Flux"),
        (dotted(random_lora(1, targets=("attn.to_q",), blocks=1), ""), "two LoRAs of"),
        (
            {
                "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, HIDDEN),
                "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.ones(3 * HIDDEN, 2),
            },
            "two LoRAs of",
        ),
        (
            {
                "lora_unet_double_blocks_0_txt_attn_qkv.lora_down.weight": torch.ones(2, HIDDEN),
                "lora_unet_double_blocks_0_txt_attn_qkv.lora_up.weight": torch.ones(2 * HIDDEN, 2),
            },
            "fits no Flux",
        ),
    ],
)
def test_files_that_are_no_plain_flux_lora(change: dict, message: str, tmp_path: Path) -> None:
    save_file(PAIR | change, tmp_path / "x.safetensors")
    with pytest.raises(LoraError, match=message) as error:
        open_lora(tmp_path / "x.safetensors")
    assert one_sentence(str(error.value), "x.safetensors")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("how", ["torch.save", "torch.save, old", *range(2, 6)])
def test_pickled_files_are_refused_and_never_loaded(how: str | int, tmp_path: Path) -> None:
    path, trace = tmp_path / "x.safetensors", tmp_path / "trace"
    if isinstance(how, int):
        path.write_bytes(pickle.dumps({"a": Bomb(trace)}, protocol=how))
    else:
        torch.save({"a": Bomb(trace)}, path, _use_new_zipfile_serialization="old" not in how)
    with pytest.raises(LoraError, match="pickled file"):
        open_lora(path)
    assert not trace.exists()


@pytest.mark.parametrize("length", [0x0280, 0x0480, 0x4B50])
def test_a_header_length_that_looks_like_a_pickle_is_read(length: int, tmp_path: Path) -> None:
    """The first bytes of a safetensors file are the length of its header."""
    path = tmp_path / "x.safetensors"
    for padding in range(length):
        write_lora(path, random_lora(0, targets=("attn.to_q",), blocks=1), {"x": "y" * max(0, length - 400 - padding)})
        size = int.from_bytes(path.read_bytes()[:8], "little")
        if size <= length:
            break
    if size == length:
        assert path.read_bytes()[:2] == length.to_bytes(2, "little")
    assert read_lora(path)[0]


def test_ten_thousand_keys_of_junk(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({f"junk.{i}": torch.zeros(1) for i in range(10_000)}, path)
    with pytest.raises(LoraError, match=r"not a Flux LoRA \(it holds 'junk\.0'\)"):
        open_lora(path)
    block = "transformer.transformer_blocks"
    save_file(PAIR | {f"{block}.{i}.attn.to_q.lora_C.weight": torch.zeros(1) for i in range(10_000)}, path)
    with pytest.raises(LoraError, match="not a Flux LoRA"):
        open_lora(path)


def one_sentence(message: str, name: str) -> bool:
    return name in message and message.endswith(".") and "\n" not in message and "Traceback" not in message


# ---- fuzzing: files of every kind of damage, from a seed


def damaged(draw: random.Random, good: bytes, header: dict, data: bytes) -> bytes:
    """A file that is not as it should be."""

    def whole(changed: dict, body: bytes = data) -> bytes:
        text = json.dumps(changed).encode()
        return len(text).to_bytes(8, "little") + text + body

    name = draw.choice([key for key in header if key != "__metadata__"])
    entry = dict(header[name])
    kind = draw.randrange(16)
    if kind == 0:
        return good[: draw.randrange(len(good))]
    if kind == 1:
        return good + bytes(draw.randrange(1, 50))
    if kind == 2:
        broken = bytearray(good)
        for _ in range(draw.randint(1, 8)):
            broken[draw.randrange(len(good) - len(data))] = draw.randrange(256)
        return bytes(broken)
    if kind == 3:
        return draw.randbytes(draw.randrange(200))
    if kind == 4:
        return draw.choice([2**63, 2**40, 10**8, len(good), 0, 1]).to_bytes(8, "little") + good[8:]
    if kind == 5:
        entry["dtype"] = draw.choice(["F4", "I8", "U64", "C64", "BOOL", "", None, 3, "F8_E8M0", "F32 "])
    elif kind == 6:
        entry["shape"] = draw.choice(
            [[], [0], [-1, 4], [2**62, 2**62], "x", None, [1.5], [entry["shape"]], [10**9] * 9]
        )
    elif kind == 7:
        entry["data_offsets"] = draw.choice([[0], [5, 1], [0, 10**12], None, ["a", "b"], [-4, 0], [0, 0], 7])
    elif kind == 8:
        return whole({draw.choice(["", "\x00", "a" * 10_000, name.upper(), f"{name}x", "../../x"]): entry})
    elif kind == 9:
        return whole({key: value for key, value in header.items() if key != name})
    elif kind == 10:
        wild = draw.choice([b"\xc0\x7f", b"\x80\x7f", b"\x80\xff"]) * (len(data) // 2)
        return whole(header, wild)
    elif kind == 11:
        return whole({**header, "__metadata__": draw.choice([1, [], {"a": 1}, {"a": None}, {"a": {"b": "c"}}, "x"])})
    elif kind == 12:
        return whole({**header, f"{name}.{draw.randrange(99)}": header[name]})
    elif kind == 13:
        return pickle.dumps({"a": [draw.random()] * draw.randrange(30)}, protocol=draw.randint(0, 5))
    elif kind == 14:
        text = draw.choice([b"[]", b"{", b"null", b'"x"', b"[" * 5000, b"{}", b'{"a":' * 2000, b"\xff\xfe{}"])
        return len(text).to_bytes(8, "little") + text + data
    else:
        return save({draw.choice([name, "x", f"lora_unet_{draw.random()}.alpha"]): torch.zeros(draw.randrange(4), 2)})
    return whole({**header, name: entry})


def test_two_thousand_malformed_files(tmp_path: Path) -> None:
    """Whatever is in a file: it is read as finite numbers, or refused in one sentence; and nothing is written."""
    draw = random.Random(0)
    buffer = io.BytesIO(save(PAIR, metadata={"format": "pt"}))
    good = buffer.getvalue()
    size = int.from_bytes(good[:8], "little")
    header, data = json.loads(good[8 : 8 + size]), good[8 + size :]
    path, out = tmp_path / "fuzz.safetensors", tmp_path / "out.safetensors"
    refused = 0
    for number in range(2400):
        path.write_bytes(damaged(draw, good, header, data))
        try:
            weights, metadata = read_lora(path)
        except ErasureError as error:
            refused += 1
            assert one_sentence(str(error), path.name), (number, str(error))
            if number % 20 == 0:
                with pytest.raises(ErasureError):
                    merge_files([path], out, "sum")
                assert sorted(file.name for file in tmp_path.iterdir()) == [path.name]
            continue
        assert all(torch.isfinite(a).all() and torch.isfinite(b).all() for a, b, _ in weights.values())
        assert all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items())
        assert re.fullmatch(r"[\w.]+", next(iter(weights)))
    assert refused >= 2000
