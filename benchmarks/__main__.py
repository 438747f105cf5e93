"""The command line of the benchmarks: `python scripts/bench.py erasure`, then `… page` for the tables.

Rows go to results/<command>.json one by one, with date and machine: the same command again does only what is missing,
and several processes may share the work. `python -m benchmarks …` does the same where .venv is set up already.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from scripts.environment import SetupError, install, install_wordnet

from .experiments.attention import attention
from .experiments.cost import cost
from .experiments.defences import BUDGET, defences
from .experiments.gate import gate
from .experiments.merging import BEYOND, MERGED, WAYS, merging
from .experiments.strength import strength
from .experiments.train import MODES, train
from .experiments.variants import METHODS, PRECISIONS, VARIANTS, ablation, erasure, precision
from .page import RESULTS, page
from .random_flux import MODELS
from .workplace import NOUNS, RELATIONS, STYLES

DRAWN = ("ablation", "attention")  # commands that look at the attention in scenes made of emoji


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser("bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)

    def command(work) -> argparse.ArgumentParser:
        """What every measurement takes."""
        summary = " ".join(work.__doc__.split("\n\n")[0].split()).replace("%", "%%")
        one = commands.add_parser(work.__name__, help=summary, description=summary)
        one.add_argument("--device", default="auto")
        one.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
        one.add_argument("--name", default="", help="of the result file, where it is not the command's")
        one.add_argument("--threads", type=int, default=0, help="of torch on the CPU; 0: its own choice")
        text = "make rows again that another state of the code has made"
        one.add_argument("--fresh", action="store_true", help=text)
        one.set_defaults(run=work)
        return one

    def add(work, concepts: tuple[str, ...], seeds: str, images: int) -> argparse.ArgumentParser:
        one = command(work)
        one.add_argument("--concepts", default=",".join(concepts), help="nouns, styles and relations of the demo model")
        one.add_argument("--seeds", default=seeds, help='of the trainings: "3" means 0, 1, 2; "0,2" those two')
        one.add_argument("--images", type=int, default=images, help="of the concept, and about as many of its synonyms")
        one.add_argument("--images-per-other", type=int, default=1, help="of each other noun")
        one.add_argument("--images-per-attack", type=int, default=images // 2)
        one.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a training setting")
        one.add_argument("--source", type=Path, help="another model folder that has a classifier")
        return one

    methods = add(erasure, (*NOUNS, *STYLES, *RELATIONS), "3", 24)
    methods.add_argument("--methods", default="", help=f"default: {', '.join(METHODS)}")
    whole = add(defences, NOUNS[:6], "1", 16)
    whole.set_defaults(images_per_attack=16)  # every spelling counts as much as the name
    budget = ", ".join(f"{name}={value}" for name, value in BUDGET.items())
    text = f"a budget of the white-box attacks, beside the pack's and {budget}"
    whole.add_argument("--attack-set", action="append", default=[], metavar="NAME=VALUE", help=text)
    whole.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one torch thread each")
    whole.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # one of them
    variants = add(ablation, ("car", "penguin", "castle"), "1", 24)
    variants.add_argument("--variants", default="", help=f"default: {', '.join(VARIANTS)}")
    bits = add(precision, ("car", "penguin", "castle"), "1", 24)
    bits.add_argument("--precisions", default="", help=f"default: {', '.join(PRECISIONS)}")
    costs = add(cost, ("car", "penguin", "castle"), "1", 24)
    costs.add_argument("--repeats", type=int, default=7, help="of the timing, schedules in turn")
    costs.add_argument("--pairs", type=int, default=10, help="of ours in a timing")
    costs.add_argument("--no-training", action="store_true", help="count and time only")
    add(strength, NOUNS[:5], "1", 192)  # so many show the ends of the transition, which is steep
    maps = add(attention, ("car",), "1", 24)
    maps.add_argument("--scenes", type=int, default=100, help="of each kind")
    maps.add_argument("--tokens", type=int, default=128, help="recorded text tokens, for the cost")
    maps.add_argument("--repeats", type=int, default=3, help="of the cost's timing, of which the best counts")
    merges = add(merging, (*MERGED, *BEYOND), "1", 12)
    merges.set_defaults(images_per_other=4)
    merges.add_argument("--numbers", default="1,3,5,10,20,30,40", help="how many of the first concepts to merge")
    merges.add_argument("--ways", default="", help=f"default: {', '.join(WAYS)}".replace("%", "%%"))
    add(gate, (), "1", 0)
    full = command(train)
    full.add_argument("--model", default="flux-dev-random", choices=tuple(MODELS), help="its shape; weights are random")
    full.add_argument("--resolution", default="512,1024", help="sides in pixels")
    full.add_argument("--precision", default=",".join(PRECISIONS))
    full.add_argument("--modes", default=",".join(MODES), help="ways to keep what the backward pass needs")
    full.add_argument("--repeats", type=int, default=3, help="timed pairs, and timed steps, of each combination")
    full.add_argument("--minutes", type=float, default=9.0, help="after which no further combination is begun")
    written = commands.add_parser("page", help=page.__doc__, description=page.__doc__)
    written.add_argument("--out", type=Path, default=RESULTS)
    written.set_defaults(run=page)
    return top


def main() -> int:
    args = parser().parse_args()
    args.out = args.out.resolve()
    try:
        if args.command in DRAWN:
            install("what draws scenes", ["resvg_py>=0.5"])  # of the demo model's pictures; npm fetches the emoji
        install_wordnet()
        args.run(args)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
