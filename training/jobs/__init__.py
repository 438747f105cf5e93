"""Training in the background: a job is a folder, its worker a process that outlives the server that started it."""

from .folder import ACTIVE, OPEN, STATES, JobFolder, JobState
from .order import MAX_SLOTS, QueueSettings
from .processes import worker_command
from .scheduler import Scheduler
from .store import Job, JobStore

__all__ = [
    "ACTIVE",
    "MAX_SLOTS",
    "OPEN",
    "STATES",
    "Job",
    "JobFolder",
    "JobState",
    "JobStore",
    "QueueSettings",
    "Scheduler",
    "worker_command",
]
