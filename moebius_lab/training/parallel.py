"""One process a GPU: `torchrun --nproc-per-node 2 -m moebius_lab.training ...` trains on both, without torchrun on one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

STRAGGLER = timedelta(minutes=5)  # after which a process that waits for another gives up


def start() -> torch.device:
    """The device of this process; joins the others that torchrun started, if any."""
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", 0))
    if cuda:
        torch.cuda.set_device(local)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=STRAGGLER)
    return torch.device("cuda", local) if cuda else torch.device("cpu")


def stop() -> None:
    """Leave the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 where there is one alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that prints and saves."""
    return rank() == 0


def wait() -> None:
    """Until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def together(module: nn.Module) -> Callable:
    """The module, its gradients averaged over all processes after every backward pass, as long as what is returned is kept.

    Buffers stay each process's own.
    """
    if world() == 1:
        return module
    torch._dynamo.config.optimize_ddp = (
        False  # parts are compiled one by one: there is nothing to split at the buckets' ends
    )
    ids = [torch.cuda.current_device()] if torch.cuda.is_available() else None
    return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


@torch.no_grad()
def same_start(module: nn.Module) -> None:
    """Every process gets the first one's parameters and buffers."""
    if world() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


@torch.no_grad()
def average(gradients: list[Tensor]) -> None:
    """Every gradient becomes its mean over all processes, in place. For steps that are captured: DDP's hooks cannot be."""
    if world() > 1:
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= world()
        torch._foreach_copy_(
            gradients, [part.view(g.shape) for part, g in zip(flat.split([g.numel() for g in gradients]), gradients)]
        )


@torch.no_grad()
def share_buffers(module: nn.Module) -> None:
    """Every process gets the mean of all processes' floating-point buffers (running statistics, say)."""
    if world() > 1:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= world()


def agree(value: float) -> float:
    """The first process's value, in every process: clocks differ, and all must stop at the same step."""
    if world() == 1:
        return value
    box = torch.tensor([value], dtype=torch.float64, device="cuda" if torch.cuda.is_available() else "cpu")
    dist.broadcast(box, 0)
    return float(box)


def mean(values: Iterable[Tensor]) -> list[float]:
    """The mean over all processes of some scalars."""
    total = torch.stack([value.detach().double() for value in values])
    if world() > 1:
        dist.all_reduce(total)
        total /= world()
    return total.tolist()
