"""The import rules of the house, read from the source without importing it: arrows only run down."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Floors of training/, from the cellar up: a module may import its own floor and those below.
FLOORS: list[set[str]] = [
    {"errors", "events", "files"},
    {"models", "lora", "concepts", "settings", "request"},
    {"flow", "memory", "parallel"},
    {"bank", "checkpoint", "concept_inputs", "evaluation", "inspection", "resolve", "samples"},
    {"methods"},
    {"trainer", "updates"},
    {"jobs"},
    {"cli"},
]
FLOOR_OF = {name: height for height, names in enumerate(FLOORS) for name in names}

# Top-level modules that only exist inside a ComfyUI process.
HOST = {
    "app",
    "comfy",
    "comfy_api",
    "comfy_api_nodes",
    "comfy_config",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
}

Arrow = tuple[str, str, int]  # importing module, imported module, line


def modules(*folders: str) -> dict[str, Path]:
    """Dotted name (from the repository root) → file, for every Python file below the folders."""
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def arrows(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[bool, Arrow]]:
    """(is relative, arrow) for every import in one file; relative names are resolved as Python would."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield False, (name, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            target = node.module or ""
            if node.level:
                parent = package.split(".")
                base = parent[: len(parent) - node.level + 1]
                target = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{target}.{alias.name}"
                yield node.level > 0, (name, inner if inner in known else target, node.lineno)


@cache
def pack_arrows() -> list[tuple[bool, Arrow]]:
    known = {"": ROOT / "__init__.py", **modules("nodes", "training")}
    return [arrow for name, path in known.items() for arrow in arrows(name, path, known)]


def floor(module: str) -> int | None:
    """Height of a training module; None for anything outside training and for the empty package file."""
    parts = module.split(".")
    return FLOOR_OF[parts[1]] if parts[0] == "training" and len(parts) > 1 else None


def shown(found: list[Arrow]) -> str:
    return "\n".join(f"{source}:{line} imports {target}" for source, target, line in found)


def test_every_part_of_training_has_a_floor() -> None:
    parts = {name.split(".")[1] for name in modules("training") if "." in name}
    assert parts, "no module found below training/"
    assert parts <= set(FLOOR_OF), f"give {sorted(parts - set(FLOOR_OF))} a floor in FLOORS"


def test_arrows_run_down_inside_training() -> None:
    up = []
    for _, arrow in pack_arrows():
        source, target = floor(arrow[0]), floor(arrow[1])
        if source is not None and target is not None and target > source:
            up.append(arrow)
    assert not up, shown(up)


def test_training_knows_neither_nodes_nor_the_host() -> None:
    wrong = [arrow for _, arrow in pack_arrows() if arrow[0].startswith("training") and arrow[1].split(".")[0] in HOST]
    assert not wrong, shown(wrong)


def test_nodes_take_nothing_that_is_run_by_hand() -> None:
    by_hand = ("training.cli",)
    wrong = [arrow for _, arrow in pack_arrows() if arrow[0].startswith("nodes") and arrow[1].startswith(by_hand)]
    assert not wrong, shown(wrong)


@pytest.mark.parametrize("part", ["methods", "lora"])
def test_methods_and_lora_never_know_of_jobs(part: str) -> None:
    wrong = [
        arrow
        for _, arrow in pack_arrows()
        if arrow[0].startswith(f"training.{part}") and arrow[1].startswith("training.jobs")
    ]
    assert not wrong, shown(wrong)


def test_pack_imports_itself_relatively() -> None:
    """The pack's folder name is not importable, and `nodes` alone is the host's module of that name."""
    wrong = [
        arrow
        for relative, arrow in pack_arrows()
        if not relative
        and (arrow[1].split(".")[0] == "training" or (arrow[1].split(".")[0] == "nodes" and arrow[0] != "nodes.compat"))
    ]
    assert not wrong, shown(wrong)


@cache
def top_arrows() -> list[Arrow]:
    """What is imported when a file is read: neither inside a function nor for type checkers."""
    known, found = {"": ROOT / "__init__.py", **modules("nodes", "training")}, []
    for name, path in known.items():
        body = ast.parse(path.read_text(encoding="utf-8")).body
        top = {node.lineno for node in body if isinstance(node, ast.Import | ast.ImportFrom)}
        found += [arrow for _, arrow in arrows(name, path, known) if arrow[2] in top]
    return found


def test_no_circle_of_imports() -> None:
    """Only imports at the top of a file count: one inside a function is how a circle would be broken."""
    known = modules("nodes", "training")
    graph: dict[str, set[str]] = {name: set() for name in known}
    for source, target, _ in top_arrows():
        if source in known and target in known and target != source:
            graph[source].add(target)
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        # A package and a module inside it import each other all the time; Python copes, so a circle needs two files.
        assert name not in trail, " → ".join([*trail[trail.index(name) :], name])
        if name in done:
            return
        for target in sorted(graph[name]):
            if not name.startswith(f"{target}."):
                walk(target, (*trail, name))
        done.add(name)

    for name in graph:
        walk(name, ())


def test_the_host_starts_without_the_libraries_of_a_training() -> None:
    """They take seconds to read, and most starts of the host train nothing."""
    known, read = modules("nodes", "training"), set[str]()
    waiting = [name for name in known if name.startswith("nodes")]
    while waiting:
        name = waiting.pop()
        if name not in read:
            read.add(name)
            waiting += [target for source, target, _ in top_arrows() if source == name and target in known]
            waiting += [name.rpartition(".")[0]] if "." in name else []
    assert "training.models.attention" in read, "the walk has lost its way"
    heavy = {"accelerate", "diffusers", "nltk", "nudenet", "onnxruntime", "peft", "scipy", "torchmetrics"}
    wrong = [arrow for arrow in top_arrows() if arrow[0] in read and arrow[1].split(".")[0] in heavy]
    assert not wrong, shown(wrong)


# What reads the disk, as a method of a path or a job, or a function of nodes/service.py.
DISK = {"exists", "is_dir", "is_file", "is_symlink", "iterdir", "open", "read_bytes", "read_text", "resolve", "stat"}


def calls_on_the_event_loop(handler: ast.AsyncFunctionDef) -> Iterator[ast.Call]:
    """Calls that a coroutine makes itself: functions and lambdas inside it are what it has run in a thread."""
    waiting: list[ast.AST] = list(handler.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Call):
            yield node
        waiting += ast.iter_child_nodes(node)


def test_no_file_is_read_on_the_servers_event_loop() -> None:
    tree = ast.parse((ROOT / "nodes" / "routes.py").read_text(encoding="utf-8"))
    handlers = [node for node in tree.body if isinstance(node, ast.AsyncFunctionDef)]
    assert len(handlers) > 15
    wrong = []
    for handler in handlers:
        for call in calls_on_the_event_loop(handler):
            name = ast.unparse(call.func)
            if name.rpartition(".")[2] in {*DISK, "job_of"} or name.startswith("service."):
                wrong.append(f"{handler.name}:{call.lineno} calls {name}")
    assert not wrong, wrong


def test_scripts_need_nothing_but_python() -> None:
    """They make the environment, so they run before anything is installed."""
    scripts = modules("scripts")
    own = {name.rpartition(".")[2] for name in scripts}
    wrong = []
    for name, path in scripts.items():
        top = [
            n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.Import | ast.ImportFrom)
        ]
        lines = {n.lineno for n in top}
        for relative, arrow in arrows(name, path, scripts):
            first = arrow[1].split(".")[0]
            if arrow[2] in lines and not relative and first not in sys.stdlib_module_names | own | {"scripts"}:
                wrong.append(arrow)
    assert not wrong, shown(wrong)


def test_no_module_beside_a_script_hides_one_of_pythons() -> None:
    """A folder whose files are run by path comes first on their sys.path: a queue.py there replaces Python's own."""
    run_by_path = {ROOT / "training" / "jobs", ROOT / "scripts"}
    hidden = [str(f) for folder in run_by_path for f in folder.glob("*.py") if f.stem in sys.stdlib_module_names]
    assert not hidden, f"rename {hidden}"


def test_files_stay_readable() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in modules("nodes", "training", "scripts", "tests").values()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 600
    }
    assert not long, f"split these: {long}"


def test_what_is_run_by_hand_stands_beside_the_pack() -> None:
    """demo_model, benchmarks and scripts use the engine; no user needs them, so the pack never imports them."""
    by_hand = ("benchmarks", "demo_model", "scripts")
    known = modules(*by_hand, "nodes", "tests", "training")
    every = [arrow for name, path in known.items() for _, arrow in arrows(name, path, known)]
    assert any(source.startswith(by_hand) and target.startswith("training.") for source, target, _ in every)
    wrong = [
        arrow
        for arrow in every
        if (arrow[0].startswith(by_hand) and arrow[1].split(".")[0] in ("nodes", "tests"))
        or (arrow[0].startswith(("nodes", "training")) and arrow[1].split(".")[0] in (*by_hand, "tests"))
    ]
    assert not wrong, shown(wrong)
