"""Command line for LoRA files: merge them, say what one is, convert one into this pack's layout, bake it into a model.

    python -m training.lora merge --mode fusion --out FILE A.safetensors B.safetensors
    python -m training.lora info FILE
    python -m training.lora convert --out FILE A.safetensors
    python -m training.lora bake --source MODEL --out MODEL A.safetensors

The last line printed is one JSON object: what `files.describe`, `files.convert`, `files.merge_files` or `bake.bake`
returns, and "seconds". Exit status 1 with one sentence on stderr says why nothing was written.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from ..errors import ErasureError
from . import files
from .bake import bake
from .merge import MODES, PRESERVE


def numbers(text: str) -> list[float]:
    """ "1,0.5,-1" as numbers."""
    return [float(part) for part in text.split(",")]


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="python -m training.lora", description="LoRA files of Flux, in any dialect.")
    commands = top.add_subparsers(dest="command", required=True)
    merge = commands.add_parser(
        "merge",
        help="make one LoRA of several",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{mode}: {use}" for mode, use in MODES.items()),
    )
    merge.add_argument("loras", nargs="+", type=Path, help="LoRA files, or folders of them")
    merge.add_argument("--mode", default=next(iter(MODES)), choices=tuple(MODES), help="see below")
    merge.add_argument(
        "--weights", type=numbers, help="one per LoRA, with commas: --weights=1,0.5,-1 (default: 1 each)"
    )
    merge.add_argument("--rank", type=int, help="svd: highest rank of a layer")
    merge.add_argument("--error", type=float, help="svd: relative error of the whole instead, 0 to 1")
    merge.add_argument(
        "--preserve",
        type=float,
        default=PRESERVE,
        help="fusion: weight of what must stay as it is; raise it where other things change (default: %(default)s)",
    )
    info = commands.add_parser("info", help="say what a LoRA file holds")
    info.add_argument("lora", type=Path)
    convert = commands.add_parser("convert", help="write a LoRA of any dialect in this pack's layout")
    convert.add_argument("lora", type=Path)
    baked = commands.add_parser("bake", help="write a Flux checkpoint with LoRAs folded in")
    baked.add_argument("loras", nargs="+", type=Path, help="LoRA files, or folders of them")
    baked.add_argument("--source", required=True, type=Path, help="transformer file, or folder in diffusers layout")
    baked.add_argument("--strengths", type=numbers, help="one per LoRA: --strengths=1,0.5 (default: 1 each)")
    for command in (merge, convert, baked):
        command.add_argument("--out", required=True, type=Path)
        taken = command.add_mutually_exclusive_group()
        taken.add_argument("--overwrite", action="store_true", help="replace a file of that name")
        taken.add_argument("--number", action="store_true", help='write "name (2)" where the name is taken')
    for command, default in ((merge, "fp32"), (convert, "auto")):
        choices = (*(("auto",) if default == "auto" else ()), *files.DTYPES)
        command.add_argument(
            "--dtype", default=default, choices=choices, help="numbers in the file (default: %(default)s)"
        )
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    args = parser().parse_args(arguments)
    began = time.monotonic()
    out: Any = files.numbered(args.out) if getattr(args, "number", False) else getattr(args, "out", None)
    try:
        if args.command == "merge":
            result = files.merge_files(
                files.lora_files(args.loras),
                out,
                args.mode,
                weights=args.weights,
                rank=args.rank,
                error=args.error,
                preserve=args.preserve,
                dtype=args.dtype,
                overwrite=args.overwrite,
            )
        elif args.command == "info":
            result = files.describe(args.lora)
        elif args.command == "convert":
            result = files.convert(args.lora, out, dtype=args.dtype, overwrite=args.overwrite)
        else:
            loras = files.lora_files(args.loras)
            result = bake(args.source, loras, out, strengths=args.strengths, overwrite=args.overwrite)
    except ErasureError as error:
        print(error, file=sys.stderr)
        return 1
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps({**result, "seconds": round(time.monotonic() - began, 2)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
