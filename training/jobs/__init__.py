"""Training in the background: a job is a folder, its worker a process that outlives the server that started it."""

from .folder import ACTIVE, OPEN, STATES, JobFolder, JobState
from .processes import worker_command
from .scheduler import Scheduler
from .store import Job, JobStore

__all__ = ["ACTIVE", "OPEN", "STATES", "Job", "JobFolder", "JobState", "JobStore", "Scheduler", "worker_command"]
