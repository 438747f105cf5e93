"""Data-parallel training with one single-threaded process per core.

On a shared CPU this is faster than one process with many threads: threads meet at every small operation and wait for
whichever core was taken away, replicas meet once a step.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def workers_for(device: torch.device) -> int:
    """Replicas to start: one per core on the CPU, one on an accelerator."""
    return (os.cpu_count() or 1) if device.type == "cpu" else 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _enter(rank: int, function: Callable[..., None], count: int, port: int, arguments: tuple) -> None:
    if count > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    function(rank, count, *arguments)
    if count > 1:
        dist.destroy_process_group()


def run(function: Callable[..., None], count: int, *arguments: object) -> None:
    """Call `function(rank, count, *arguments)` in `count` processes and wait for all of them."""
    if count == 1:
        _enter(0, function, 1, 0, arguments)
    else:
        mp.spawn(_enter, args=(function, count, _free_port(), arguments), nprocs=count)


def average_gradients(parameters: Iterable[torch.nn.Parameter], count: int) -> None:
    """Mean over the replicas of every gradient, in one message."""
    if count == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= count
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def share(owned: list[list[torch.Tensor]], count: int) -> None:
    """Give every replica each owner's tensors; `owned[r]` are the tensors that rank r is right about."""
    if count == 1:
        return
    for owner, tensors in enumerate(owned):
        flat = torch.cat([t.detach().flatten() for t in tensors])
        dist.broadcast(flat, owner)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.detach().copy_(part.view_as(tensor))
