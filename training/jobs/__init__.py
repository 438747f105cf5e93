"""Training in the background: a job is a folder, its worker a process that outlives the server that started it."""

from .folder import JobFolder, JobState
from .job import Job
from .job_queue import MAX_SLOTS, JobQueue
from .repository import JobRepository
from .scheduler import Scheduler

__all__ = [
    "MAX_SLOTS",
    "Job",
    "JobFolder",
    "JobQueue",
    "JobRepository",
    "JobState",
    "Scheduler",
]
