"""The processes that train one network together, as torchrun starts them."""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from esper.errors import EsperError, ProcessLost, RunError

T = TypeVar("T")

RESTARTS = "TORCHELASTIC_RESTART_COUNT"
"""Where torchrun says how often it has started the processes again."""


class Group(Protocol):
    """Processes that run the same program; a call of any method waits until all of them have made it.

    The first, of rank 0, leads: it alone writes, and what needs deciding is decided there. Every method
    raises ProcessLost when one of the others is gone. Used by one thread.
    """

    rank: int
    size: int

    def broadcast(self, value: T) -> T:
        """The ``value`` of the first process: plain data, dataclasses, tensors on the CPU."""
        ...

    def gather(self, value: T) -> list[T]:
        """The ``value`` of each process, by rank."""
        ...

    def sum(self, tensor: Tensor) -> None:
        """Put the sum over the processes into ``tensor``, the same to the last bit in each."""
        ...

    def copy_from_first(self, tensor: Tensor) -> None:
        """Put what ``tensor`` is in the first process into it."""
        ...


class OneProcess:
    """A group of one, in which nothing needs doing."""

    rank = 0
    size = 1

    def broadcast(self, value: T) -> T:
        """``value`` itself."""
        return value

    def gather(self, value: T) -> list[T]:
        """``value`` alone."""
        return [value]

    def sum(self, tensor: Tensor) -> None:
        """Leave ``tensor`` as it is."""

    def copy_from_first(self, tensor: Tensor) -> None:
        """Leave ``tensor`` as it is."""


ALONE = OneProcess()


class ManyProcesses:
    """The processes of torch.distributed's default group: gloo for the CPU, NCCL for CUDA."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def broadcast(self, value: T) -> T:
        """The ``value`` of the first process, through pickle: the others are this program, too."""
        box = [value]
        with _others_there():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The ``value`` of each process, by rank."""
        boxes: list[T | None] = [None] * self.size
        with _others_there():
            dist.all_gather_object(boxes, value)
        return boxes  # type: ignore[return-value]  # each is filled in

    def sum(self, tensor: Tensor) -> None:
        """Sum ``tensor`` over the processes, in place."""
        with _others_there():
            dist.all_reduce(tensor)

    def copy_from_first(self, tensor: Tensor) -> None:
        """Take ``tensor`` over from the first process, in place."""
        with _others_there():
            dist.broadcast(tensor, src=0)


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_torchelastic_launched()


def own_rank() -> int:
    """The rank that torchrun gave this process, 0 where it did not start it."""
    return int(os.environ["RANK"]) if launched() else 0


def processes_launched() -> int:
    """How many processes torchrun started, on all machines; 1 where it did not start this one."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def job_id() -> str:
    """What the processes that torchrun started have in common over all its restarts."""
    name = os.environ["TORCHELASTIC_RUN_ID"]
    return name if name != "none" else f"{name}-{os.getppid()}"  # torchrun's own word for no name


def restarted() -> bool:
    """Whether torchrun started this process in the place of one that failed."""
    return launched() and int(os.environ.get(RESTARTS, 0)) > 0


def join(device_type: str) -> Group:
    """The group of the processes that torchrun started, for tensors on ``device_type`` and on the CPU."""
    if processes_launched() == 1:
        return ALONE
    if not dist.is_initialized():
        if device_type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
        with _others_there():
            store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
            # torchrun's agent keeps its store over a restart, and with it where the dead were to be found.
            own = dist.PrefixStore(f"restart-{os.environ.get(RESTARTS, 0)}", store)  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=own, rank=rank, world_size=size)
    return ManyProcesses()


def leave() -> None:
    """End the group, once all processes are done with it; where there is none, nothing."""
    if dist.is_initialized():
        with _others_there():
            dist.barrier()
        gc.collect()
        dist.destroy_process_group()


def from_first(group: Group, make: Callable[[], T]) -> T:
    """What ``make`` returns in the first process, which alone calls it; an EsperError is raised in all."""
    if group.size == 1:
        return make()
    made: tuple[T | None, EsperError | None] = None, None
    if group.rank == 0:
        try:
            made = make(), None
        except EsperError as error:
            made = None, error
    value, error_there = group.broadcast(made)
    if error_there is not None:
        raise error_there
    return value  # type: ignore[return-value]  # there is one where there is no error


def held_by_first(group: Group, make: Callable[[], T]) -> T | None:
    """What ``make`` returns in the first process, and None in the others; an EsperError is raised in all."""
    made: list[T] = []
    from_first(group, lambda: made.append(make()))
    return made[0] if made else None


def digest(model: nn.Module) -> str:
    """SHA-256 over the names, kinds, shapes and bytes of all parameters and buffers."""
    sha = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def check_alike(model: nn.Module, group: Group, when: str) -> None:
    """Raise RunError unless ``model`` is the same to the last bit in all processes."""
    if group.size == 1:
        return
    digests = group.gather(digest(model))
    other = [rank for rank, each in enumerate(digests) if each != digests[0]]
    if other:
        raise RunError(
            f"{when} process {other[0]} of {group.size} has other weights than the first one",
            hint="go on from the newest checkpoint with --resume; on machines of one kind if they differ",
        )


def copy_weights(model: nn.Module, group: Group, when: str) -> None:
    """Give all processes the first one's parameters and buffers; RunError when the shapes differ."""
    if group.size == 1:
        return
    tensors = model.state_dict()
    shapes = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()]
    if any(each != shapes for each in group.gather(shapes)):
        raise RunError(
            f"{when} the processes have networks of different shapes",
            hint="go on from the newest checkpoint with --resume",
        )
    with torch.no_grad():
        for tensor in tensors.values():
            whole = tensor.contiguous()
            group.copy_from_first(whole)
            tensor.copy_(whole)


@contextmanager
def _others_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch.distributed raises is one, or of a class below it
        first, *_ = str(error).splitlines() or [type(error).__name__]
        reason = first.rpartition("] ")[2].partition(". ")[0]  # without the place in torch's source
        raise ProcessLost(
            f"another process of the training is gone ({reason})",
            hint="go on from the newest checkpoint with --resume",
        ) from error
