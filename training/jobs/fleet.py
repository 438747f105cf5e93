"""Many trainings from a list, on this machine's devices or a Ray cluster, in the same job folders that a server uses.

    python -m training.jobs.fleet submit concepts.csv --source FOLDER --jobs DIR
    python -m training.jobs.fleet work --jobs DIR --slots 2
    python -m training.jobs.fleet work --jobs DIR --ray ADDRESS
    python -m training.jobs.fleet status --jobs DIR

`submit` queues one job per line; the same line again is the same job. `work` trains what is queued, several at once,
until nothing is left; it may be killed and started again at any time. With --ray the tasks of a Ray cluster do it
(--ray alone: one of this machine's own; see cluster.py). A ComfyUI server works off the same queue when
DIR is its jobs folder (user/__erase_anything/jobs). LoRAs go to --loras, or to DIR's neighbour "loras".

The list is CSV in UTF-8 with a header. Columns: `phrase` (what to erase), `kind` and `template` (see make_concept),
`name` (of the LoRA, without folders; empty: chosen), and every setting of ErasureConfig. An empty cell is the default;
a list is written as JSON ("[0, 1]"). All lines are checked before the first one is queued.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from ..concepts import Kind, make_concept, vocabulary_of
from ..errors import ConfigError, ErasureError
from ..models.source import PRECISIONS, FluxSource
from ..request import ErasureRequest
from ..settings import SETTINGS, ErasureConfig
from . import cluster
from .job import Job
from .job_queue import JobQueue
from .processes import worker_command
from .repository import JobRepository
from .scheduler import Scheduler

CONCEPT_COLUMNS = ("phrase", "kind", "template", "name")
POLL_SECONDS = 0.5


def read_list(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, cells that are not empty) of a CSV file. Raises ConfigError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            unknown = set(columns) - set(CONCEPT_COLUMNS) - set(SETTINGS)
            if "phrase" not in columns or unknown or len(set(columns)) < len(columns):
                what = f"unknown column {sorted(unknown)[0]!r}" if unknown else "no column, or two of one name"
                raise ConfigError(
                    f"{path.name}: {what}; the first line must name the columns, `phrase` and any of "
                    f"{', '.join((*CONCEPT_COLUMNS[1:], *SETTINGS))}."
                )
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path.name} cannot be read as CSV in UTF-8 ({error}).") from error
    found = []
    for line, row in rows:
        if None in row:
            raise ConfigError(f"{path.name}, line {line}: more cells than columns; put a text with commas in quotes.")
        found.append((line, {name: cell.strip() for name, cell in row.items() if cell and cell.strip()}))
    return [(line, cells) for line, cells in found if cells]


def read_cell(name: str, cell: str) -> Any:
    """A setting's value: a text for settings that are texts, JSON for the others (checked by ErasureConfig)."""
    if isinstance(SETTINGS[name].default, str):
        return cell
    try:
        return json.loads(cell.lower() if isinstance(SETTINGS[name].default, bool) else cell)
    except ValueError:
        return cell


def request_of(
    cells: dict[str, str], source: FluxSource, loras: Path, device: str, vocabulary: Callable[[str], bool]
) -> ErasureRequest:
    """The request that a line describes; its name may be only a beginning. Raises ErasureError's subclasses."""
    config = ErasureConfig.from_dict({name: read_cell(name, cells[name]) for name in cells if name in SETTINGS})
    concept = make_concept(
        cells.get("phrase", ""),
        cast(Kind, cells.get("kind", "entity")),  # make_concept refuses what is no kind
        cells.get("template"),
        seed=config.seed,
        vocabulary=vocabulary,
    )
    stem = re.sub(r"[^\w.-]+", "-", f"erase-{concept.phrase.lower()}").strip("-.")[:60]
    request = ErasureRequest(source, concept, config, cells.get("name", stem), str(loras.resolve()), device)
    request.validate()
    return request


def submit(repository: JobRepository, path: Path, source: FluxSource, loras: Path, devices: list[str]) -> list[Job]:
    """Queues a job for each line of a list, over `devices` in turn; a line that was queued before keeps its device.

    Raises ErasureError's subclasses; nothing is queued where a line is wrong.
    """
    from transformers import AutoTokenizer

    source.validate()
    tokenizer = source.tokenizer_2 or str(Path(source.folder) / "tokenizer_2")
    vocabulary = vocabulary_of(AutoTokenizer.from_pretrained(tokenizer, local_files_only=True))
    requests = []
    for number, (line, cells) in enumerate(read_list(path)):
        try:
            first = request_of(cells, source, loras, devices[number % len(devices)], vocabulary)
            others = [dataclasses.replace(first, device=device) for device in devices]
            known = next((request for request in others if repository.find(request)), first)
            requests.append((known, "name" not in cells))
        except ErasureError as error:
            raise type(error)(f"{path.name}, line {line}: {error}") from error
    return [repository.submit(request, choose_name=chosen) for request, chosen in requests]


class ProgressLines:
    """Prints a line for each change of a job's state."""

    def __init__(self, print_line: Callable[[str], None]):
        self._print = print_line
        self._states: dict[str, tuple[str, str]] = {}

    def update(self, job: Job) -> None:
        """Takes a job as it is now."""
        state = (job.state.state, job.state.message if job.state.state != "running" else "")
        if self._states.get(job.id) != state:
            self._states[job.id] = state
            self._print(line_of(job))


def work(
    repository: JobRepository,
    slots: int | None = None,
    print_line: Callable[[str], None] = print,
    command: Callable[[Path], list[str]] = worker_command,
) -> bool:
    """Trains what is queued until nothing is left; whether all jobs that were open then have been completed.

    slots: how many at once; None: as the queue's settings say. print_line: takes a line for each change of a state.
    """
    jobs = [job.id for job in repository.list() if job.state.state in ("queued", "starting", "running")]
    if slots is None and JobQueue(repository).settings().slots == 0:
        raise ConfigError("The queue is held (0 slots): say how many with --slots.")
    scheduler, progress = Scheduler(repository, slots, command), ProgressLines(print_line)
    scheduler.start()
    try:
        while True:
            now = [job for job in repository.list() if job.id in jobs]
            for job in now:
                progress.update(job)
            if not any(job.state.state in ("queued", "starting", "running") for job in now):
                return all(job.state.state == "completed" for job in now)
            time.sleep(POLL_SECONDS)
    finally:
        scheduler.close()


def line_of(job: Job) -> str:
    """A job as one line of text."""
    state = job.state
    return f"{state.state:11s} {state.step:5d}/{state.total:<5d} {job.name:30s} {state.message}".rstrip()


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="python -m training.jobs.fleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True)
    queue = commands.add_parser("submit", help="queue a list of concepts")
    queue.add_argument("list", type=Path, help="CSV file")
    queue.add_argument("--source", required=True, type=Path, help="Flux folder in diffusers layout")
    queue.add_argument("--precision", default="auto", choices=PRECISIONS)
    queue.add_argument("--loras", type=Path, help="folder for the LoRAs (default: beside the jobs)")
    queue.add_argument("--device", default="auto", help="or several, separated by commas: cuda:0,cuda:1")
    train = commands.add_parser("work", help="train what is queued")
    train.add_argument("--slots", type=int, help="how many at once (default: the queue's setting)")
    train.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help="on a Ray cluster (alone: a local one)")
    status = commands.add_parser("status", help="show all jobs")
    status.add_argument("--json", action="store_true", help="as the routes tell them")
    for command in (queue, train, status):
        command.add_argument("--jobs", required=True, type=Path, help="folder of the jobs")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; the exit status (0: done, 1: not all well, one sentence on stderr says why, 130: interrupted)."""
    args = parser().parse_args(arguments)
    repository = JobRepository(args.jobs.resolve())
    try:
        if args.command == "submit":
            source = FluxSource("diffusers", folder=str(args.source.resolve()), precision=args.precision)
            loras = args.loras or repository.root.parent / "loras"
            for job in submit(repository, args.list, source, loras, args.device.split(",")):
                print(line_of(job))
        elif args.command == "work":
            if args.ray is None:
                return 0 if work(repository, args.slots) else 1
            return (
                0
                if cluster.work(repository, args.ray or None, args.slots, ProgressLines(print).update, POLL_SECONDS)
                else 1
            )
        else:
            jobs, problems = repository.scan()
            listed = [job.to_dict(samples=False) for job in jobs]
            print(json.dumps({"jobs": listed, "problems": problems}) if args.json else "\n".join(map(line_of, jobs)))
            if not args.json:
                print(*problems.values(), sep="\n", end="\n" if problems else "")
    except ErasureError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; trainings that run go on, `work` takes them over again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
