"""Lists of concepts: what a CSV may hold, what is refused, and working them off with several processes."""

from __future__ import annotations

import json

import psutil
import pytest

from tests.support.job_parts import at_step, command, in_state, steps_taken, wait_for
from training.errors import ConfigError
from training.jobs import JobQueue, fleet

HEADER = "phrase,kind,template,name,steps,erase_synonyms,blocks\n"


@pytest.fixture
def run(store, tmp_path, demo_folder, capsys):
    """Runs the command line on a list; (exit status, stdout, stderr)."""

    def submit(text: str, *more: str) -> tuple[int, str, str]:
        (tmp_path / "concepts.csv").write_text(text, encoding="utf-8")
        where = ["--jobs", str(store.root), "--source", str(demo_folder)]
        status = fleet.main(["submit", str(tmp_path / "concepts.csv"), *where, *more])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return submit


def test_a_list_is_queued_once(store, run, capsys):
    text = HEADER + 'car,,,,7,FALSE,"[0, 1]"\n\n"red wine",custom,"a glass of {}",wine,,,\n'
    status, out, _ = run(text, "--device", "cpu,auto")
    assert status == 0
    assert len(out.splitlines()) == 2
    first, second = store.list()
    assert (first.name, second.name) == ("erase-car", "wine")
    config = first.request["config"]
    assert (config["steps"], config["erase_synonyms"], config["blocks"]) == (7, False, [0, 1])
    assert second.request["concept"]["template"] == "a glass of {}"
    assert [job.request["device"] for job in (first, second)] == ["cpu", "auto"]
    assert run(text, "--device", "cpu,auto")[0] == 0
    assert len(store.list()) == 2
    assert fleet.main(["status", "--jobs", str(store.root)]) == 0
    assert "queued" in capsys.readouterr().out
    fleet.main(["status", "--jobs", str(store.root), "--json"])
    assert [job["name"] for job in json.loads(capsys.readouterr().out)["jobs"]] == ["erase-car", "wine"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the first line must name the columns"),
        ("name,steps\na,1\n", "the first line must name the columns"),
        ("phrase,phrase\na,b\n", "two of one name"),
        ("phrase,stepz\ncar,1\n", "unknown column 'stepz'"),
        (HEADER + "car,,,,5,,\ndog,,,,many,,\n", "line 3: The setting steps must be of type int"),
        (HEADER + "car,,,,5,,\ndog,,,,0,,\n", "line 3: The setting steps must lie between"),
        (HEADER + "car,,,../x,5,,\n", "line 2: '../x' cannot be a LoRA's name"),
        (HEADER + "car,,,,5,,,,,\n", "line 2: more cells than columns"),
        (HEADER + ",entity,,,5,,\n", "line 2: The concept is empty"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_queued(store, run, text, sentence):
    status, _, error = run(text)
    assert status == 1
    assert sentence in error
    assert error.count("\n") == 1
    assert store.list() == []


def test_two_processes_work_and_one_that_is_killed_is_resumed(store, request_for):
    jobs = [store.submit(request_for(f"l{i}", " at 0.05", f"thing {i}", steps=40)) for i in range(3)]
    killed: list[str] = []

    def tell(line: str) -> None:  # called while they train
        if not killed and line.startswith("running"):
            running = wait_for(store, jobs[0], at_step(2))
            psutil.Process(running.state.pid).kill()
            killed.append(running.id)

    assert fleet.work(store, 2, tell, command) is False  # one was interrupted
    assert store.get(jobs[0].id).state.state == "interrupted"
    store.resume(jobs[0].id)
    assert fleet.work(store, 2, tell, command) is True
    for job in jobs:
        assert steps_taken(wait_for(store, job, in_state("completed"))) == list(range(1, 41))


def test_a_held_queue_is_not_waited_for_forever(store):
    JobQueue(store).configure(slots=0)
    with pytest.raises(ConfigError, match="The queue is held"):
        fleet.work(store)
