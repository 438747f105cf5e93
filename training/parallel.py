"""Data parallel training of one concept: processes that take shares of each batch and average their gradients.

`accelerate launch` or torchrun starts one process for each device of one machine. All processes choose the same batches
and hold the same adapter; only the first one, the leader, fills the bank and writes files.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, distributed

from .errors import ConfigError
from .request import ErasureRequest

PATIENCE = datetime.timedelta(days=7)  # the others wait for the leader while it fills the bank and renders samples


@dataclass(frozen=True)
class Group:
    """The processes of a training, and which of them this one is.

    A single process is a group too; it never waits.

    Attributes:
        rank: This process's number, from 0, which is the leader's.
        size: The number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def whole(self, batch: int) -> int:
        """`batch` rounded up, so that every process has the same number of samples."""
        return -(-batch // self.size) * self.size

    def share(self, batch: Tensor) -> Tensor:
        """This process's samples of a batch, [B, …] → [B / size, …]."""
        return batch[self.rank :: self.size]

    def average(self, parameters: Sequence[torch.nn.Parameter], losses: dict[str, float]) -> dict[str, float]:
        """Averages gradients over the processes, in place, and returns the means of the losses."""
        if self.size == 1:
            return losses
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(whole)
        for gradient, mean in zip(gradients, whole.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient) / self.size)
        values = torch.tensor(list(losses.values()), dtype=torch.float64)
        distributed.all_reduce(values)
        return dict(zip(losses, (values / self.size).tolist(), strict=True))

    def agreed(self, value: Any) -> Any:
        """The leader's value, on every process; `value` must be picklable."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leader runs the context's body first; the other processes enter it when the leader has left."""
        if not self.leads:
            self.agreed(None)
        yield
        if self.leads:
            self.agreed(None)


ALONE = Group()


def join() -> Group:
    """Joins the group that the launcher's environment variables describe; ALONE where there are none."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if size == 1:
        return ALONE
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
    if not distributed.is_initialized():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return Group(rank, size)


def leave(group: Group) -> None:
    """Ends the group that `join` returned, when this process no longer needs the others."""
    if group.size > 1:
        distributed.destroy_process_group()


def placed(request: ErasureRequest, group: Group) -> ErasureRequest:
    """The request with this process's own device.

    Raises:
        ConfigError: Where the request names one device, which several processes cannot share.
    """
    if group.size == 1:
        return request
    if request.device not in ("auto", "cpu"):
        raise ConfigError("Processes that train together take a device each: leave --device on auto, or set it to cpu.")
    if request.device == "auto" and torch.cuda.is_available():
        return replace(request, device=f"cuda:{torch.cuda.current_device()}")
    return request
