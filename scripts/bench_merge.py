"""Measures merging and baking at Flux.1-dev's real size: `python scripts/bench_merge.py merge` or `… bake`.

merge: LoRAs of rank 8 on add_q_proj and add_k_proj of 19 blocks (76 bf16 tensors each), with concept inputs, merged in
every mode, each in a process of its own. bake: a LoRA folded into a checkpoint of many bf16 blocks of Flux's widths.
The last line is JSON: per case seconds, CPU seconds and peak memory (MB of resident set), reading and writing included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.environment import run_inside_venv

HIDDEN, BLOCKS = 3072, 19
MODES = {"normalised": {}, "sum": {}, "concat": {}, "svd": {"rank": 64}, "svd to 10 %": {"error": 0.1}, "fusion": {}}


def make_loras(folder: Path, count: int, rank: int, blocks: int) -> list[Path]:
    """LoRA files with concept inputs, random but of trained LoRAs' spectrum: ranks matter less and less."""
    import torch

    from training.lora.format import write_lora
    from training.lora.inputs import COLUMNS, ConceptInputs, inputs_path, write_inputs

    paths = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        weights, concept, keep = {}, {}, {}
        for block in range(blocks):
            for target in ("add_q_proj", "add_k_proj"):
                a = torch.randn(rank, HIDDEN, generator=generator) / HIDDEN**0.5
                b = 0.1 * torch.randn(HIDDEN, rank, generator=generator) * 0.7 ** torch.arange(rank)
                weights[f"transformer_blocks.{block}.attn.{target}"] = (a, b, float(rank))
            place = f"transformer_blocks.{block}.attn.add_q_proj"
            for kind, factors in (("concept", concept), ("keep", keep)):
                strength = 0.8 ** torch.arange(COLUMNS[kind])[:, None]
                factors[place] = torch.randn(COLUMNS[kind], HIDDEN, generator=generator) * strength
        paths.append(folder / f"lora-{number:03d}.safetensors")
        write_lora(paths[-1], weights, {}, torch.bfloat16)
        write_inputs(inputs_path(paths[-1]), ConceptInputs(concept, keep))
    return paths


def make_checkpoint(path: Path, blocks: int) -> None:
    """A bf16 file of Flux's double blocks (0.68 GB each), written without holding it: zeros on disk."""
    from training.lora.format import encode_header

    shapes = {}
    for block in range(blocks):
        widths = {
            "img_attn.qkv": (3, 1),
            "txt_attn.qkv": (3, 1),
            "img_mlp.0": (4, 1),
            "txt_mlp.0": (4, 1),
            "img_mlp.2": (1, 4),
            "txt_mlp.2": (1, 4),
            "img_mod.lin": (6, 1),
            "txt_mod.lin": (6, 1),
        }
        for name, (outputs, inputs) in widths.items():
            shapes[f"double_blocks.{block}.{name}.weight"] = [outputs * HIDDEN, inputs * HIDDEN]
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    with path.open("wb") as file:
        file.write(encode_header(header))
        file.truncate(file.tell() + end)


def one(case: str, folder: Path) -> dict[str, float]:
    """Run one case in this process and measure it."""
    import psutil
    import torch

    began, before = time.monotonic(), sum(os.times()[:2])
    if case == "bake":
        from training.lora.bake import bake

        facts = bake(folder / "flux.safetensors", [folder / "lora.safetensors"], folder / "baked.safetensors")
        shown = {"gigabytes": round(facts["bytes"] / 1e9, 2), "changed": facts["changed"]}
    else:
        from training.lora.files import lora_files, merge_files

        out = folder / "out" / f"{case.split()[0]}.safetensors"
        facts = merge_files(lora_files([folder]), out, case.split()[0], overwrite=True, **MODES[case])
        shown = {"rank": facts["rank"], "mean_rank": facts["mean_rank"], "relative_error": facts["relative_error"]}
        shown["megabytes"] = round(out.stat().st_size / 1e6)
    info = psutil.Process().memory_info()
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    except ImportError:  # Windows
        peak = info.peak_wset
    return {
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(sum(os.times()[:2]) - before, 1),
        "peak_mb": round(peak / 1e6),
        "threads": torch.get_num_threads(),
        **shown,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("merge", "bake"))
    parser.add_argument("--loras", type=int, default=100)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--modes", default=",".join(MODES), help="with commas (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="fewer for part of the work (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="for the files (default: a temporary one, removed in the end)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    run_inside_venv()
    if args.case:
        print(json.dumps(one(args.case, args.folder)))
        return 0
    results = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        if args.what == "merge":
            make_loras(folder, args.loras, args.rank, args.blocks)
            cases = args.modes.split(",")
        else:
            make_loras(folder, 1, args.rank, args.blocks)[0].rename(folder / "lora.safetensors")
            make_checkpoint(folder / "flux.safetensors", args.blocks)
            cases = ["bake"]
        for case in cases:
            command = [sys.executable, __file__, args.what, "--case", case, "--folder", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(done.stderr, file=sys.stderr)
                return 1
            results[case] = json.loads(done.stdout.splitlines()[-1])
            print(case, results[case], flush=True)
    print(
        json.dumps({"what": args.what, "loras": args.loras, "rank": args.rank, "blocks": args.blocks, "cases": results})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
