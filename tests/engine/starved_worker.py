"""The real worker of a job, which gets no more memory from the system after its second step."""

import ctypes
import resource
import sys
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from training import trainer
from training.jobs.runner import run_job

# Blocks of 1 MiB and more come from the system each time, never from what the allocator kept of freed ones.
M_MMAP_THRESHOLD = -3
ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)


def run(request, folder, report, should_stop):
    """trainer.run; the limit is below what is in use then, so that the next large block is refused."""

    def starve(event):
        report(event)
        if event["type"] == "checkpoint" and event["step"] == 2:
            used = psutil.Process().memory_info().vms
            resource.setrlimit(resource.RLIMIT_AS, (used, resource.getrlimit(resource.RLIMIT_AS)[1]))

    return trainer.run(request, folder, starve, should_stop)


if __name__ == "__main__":
    sys.exit(run_job(Path(sys.argv[1]), run, trainer.Stopped))
