"""Ranks: which process of how many this one is, and what the processes of a job do together.

Comes in: ranks as they are given, torch.distributed's process group, or torchrun's environment.
Goes out: (rank, world size), and tensors that are summed, averaged or shared over all processes.
Without a process group each function here does what is right for one process.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from xmix_data.errors import PreemptedError, XMixError
from xmix_data.options import whole_number

__all__ = [
    "Ranks",
    "average_in_place",
    "cpu_group",
    "default_device",
    "exit_alone",
    "from_first_process",
    "get_rank",
    "get_world_size",
    "in_a_job",
    "job",
    "named_loss_of_a_process",
    "require_group",
    "share_buffers",
    "sum_in_place",
]


class Ranks:
    """A loader's rank and world size: given, or found when they are first needed.

    Found are those of torch.distributed's process group; without one those of the environment's
    RANK and WORLD_SIZE, which torchrun sets; without these there is one process.

    Args:
        rank, world_size: As given, both or neither.

    Raises:
        ValueError: Only one of them is given, or there is no such rank.
    """

    def __init__(self, rank: int | None = None, world_size: int | None = None) -> None:
        if (rank is None) != (world_size is None):
            raise ValueError("rank and world_size belong together; give both or neither")
        self._given: tuple[int, int] | None = None
        self._found: tuple[int, int] | None = None
        self._asker = ""
        if rank is not None and world_size is not None:
            count = whole_number("world_size", world_size, 1)
            self._given = whole_number("rank", rank, 0), count
            if self._given[0] >= count:
                raise ValueError(f"rank {rank} of {count} does not exist; counting starts at 0")

    @property
    def given(self) -> tuple[int, int] | None:
        """Rank and world size as they were given."""
        return self._given

    def find(self, asker: str) -> tuple[int, int]:
        """Rank and world size.

        Args:
            asker: What needs them, for the message of an error.

        Raises:
            ValueError: The environment names no rank, or a process group that was made since they
                were first needed says otherwise.
        """
        if self._given is not None:
            return self._given
        group = (get_rank(), get_world_size()) if in_a_job() else None
        if self._found is None:
            self._found, self._asker = group or _rank_of_environment(), asker
        elif group is not None and group != self._found:
            raise ValueError(
                f"torch.distributed says rank {group[0]} of {group[1]}, and {self._asker} needed "
                f"them before there was a process group, and found rank {self._found[0]} of "
                f"{self._found[1]}; call init_process_group first, or give rank and world_size"
            )
        return self._found


def _rank_of_environment() -> tuple[int, int]:
    size = os.environ.get("WORLD_SIZE", "1")
    rank = os.environ.get("RANK", "0" if size == "1" else None)
    if not size.isdecimal() or rank is None or not rank.isdecimal() or int(rank) >= int(size):
        raise ValueError(
            f"WORLD_SIZE is {size!r}, RANK {rank!r}: this is no job; start it with torchrun, unset "
            "WORLD_SIZE, or give rank and world_size"
        )
    return (int(rank), int(size)) if int(size) > 1 else (0, 1)


def in_a_job() -> bool:
    """Return whether this process belongs to a process group of torch.distributed."""
    return distributed.is_available() and distributed.is_initialized()


def get_rank() -> int:
    """Return this process's rank; 0 without a process group."""
    return distributed.get_rank() if in_a_job() else 0


def get_world_size() -> int:
    """Return the number of processes that share the work; 1 without a process group."""
    return distributed.get_world_size() if in_a_job() else 1


def require_group(world_size: int) -> None:
    """Refuse work whose results could not be brought together over all processes.

    Args:
        world_size: How many processes share the data.

    Raises:
        ValueError: torch.distributed has no group of so many.
    """
    if world_size > 1 and get_world_size() != world_size:
        raise ValueError(
            f"the data are shared by {world_size} processes, and torch.distributed has no group of "
            "them; call torch.distributed.init_process_group first"
        )


@contextlib.contextmanager
def job() -> Iterator[tuple[int, int]]:
    """Join the processes that torchrun started for the length of the block.

    Yields:
        This process's rank among all, and on this machine; (0, 0) for a process alone.

    Raises:
        ValueError: The environment names several processes, and no rank of this one.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield 0, 0
        return
    if not os.environ["WORLD_SIZE"].isdecimal() or "RANK" not in os.environ:
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r}, RANK {os.environ.get('RANK')!r}: this is "
            "no job; start it with torchrun, or unset WORLD_SIZE"
        )
    logging.getLogger("xmix_data").setLevel(
        logging.INFO if os.environ["RANK"] == "0" else logging.WARNING
    )
    # A process that ends is noticed at once; one that is slow may be waited for.
    patience = datetime.timedelta(hours=12)
    store, rank, world_size = next(rendezvous("env://", timeout=patience))
    store.set_timeout(patience)
    # torchrun's store outlives a restart: it still has the addresses of processes that are gone.
    store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=patience,
    )
    together = False
    try:
        yield distributed.get_rank(), int(os.environ.get("LOCAL_RANK", "0"))
        together = True
    except PreemptedError:  # of all processes
        together = True
        raise
    finally:
        if together or "nccl" not in distributed.get_backend_config():
            distributed.destroy_process_group()
        else:
            global _is_left_behind
            _is_left_behind = True


_is_left_behind = False
"""Whether `job` ended in this process alone, and its group of NCCL is still there."""


def exit_alone(status: int, last_words: str = "") -> None:
    """End this process at once if `job` left a group behind that its processes must end together.

    NCCL would wait for the others at exit, and they for this one, for as long as the patience
    lasts: an error of one process would be seen by nobody.
    """
    if _is_left_behind:
        print(last_words, end="", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(status)


def default_device(local_rank: int) -> str:
    """Return the GPU of a rank on this machine, or the CPU where there is no GPU."""
    return f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"


def cpu_group() -> Any:
    """Return a process group that sends tensors on the CPU: torch's ``None`` for the one there is.

    Where that one has NCCL alone, another one is made: all processes call this together.
    """
    if "cpu:" in distributed.get_backend_config():
        return None
    return _gloo_beside(distributed.group.WORLD)


@functools.lru_cache(1)
def _gloo_beside(_: object) -> Any:
    return distributed.new_group(backend="gloo")


def from_first_process(value: Any) -> Any:
    """Return the value that the first process passes; every process passes one.

    Raises:
        XMixError: Another process of the job has ended.
    """
    if not in_a_job():
        return value
    values = [value]
    with named_loss_of_a_process():
        distributed.broadcast_object_list(values, group=cpu_group())
    return values[0]


def sum_in_place(tensors: Sequence[torch.Tensor]) -> None:
    """Sum tensors over all processes, in place.

    Raises:
        XMixError: Another process of the job has ended.
    """
    if not in_a_job():
        return
    for tensor in tensors:
        moved = tensor.cpu()
        with named_loss_of_a_process():
            distributed.all_reduce(moved, group=cpu_group())
        tensor.copy_(moved)


def average_in_place(tensors: list[torch.Tensor]) -> None:
    """Replace tensors, in place, by their means over all processes."""

    def average(flat: torch.Tensor) -> None:
        distributed.all_reduce(flat)
        flat /= get_world_size()

    _in_one_message(tensors, average)


def share_buffers(network: nn.Module) -> None:
    """Give all processes the buffers of the first, e.g. the averages of batch normalisation."""
    if get_world_size() > 1:
        _in_one_message(list(network.buffers()), lambda flat: distributed.broadcast(flat, 0))


def _in_one_message(tensors: list[torch.Tensor], send: Callable[[torch.Tensor], Any]) -> None:
    """Send all tensors of a dtype in one message, which costs more than its bytes.

    What ``send`` makes of the message is copied back into the tensors.
    """
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        send(flat)
        for tensor, part in zip(alike, torch.split(flat, [t.numel() for t in alike]), strict=True):
            tensor.copy_(part.view_as(tensor))


@contextlib.contextmanager
def named_loss_of_a_process(so_far: str = "is in the cache, if there is one") -> Iterator[None]:
    """Turn torch's error of a message that nobody answers any more into our own.

    Args:
        so_far: Where what was computed so far is, for the message.

    Raises:
        XMixError: Another process of the job has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_of_a_message(error):
            raise
        raise XMixError(
            f"rank {get_rank()} lost the other processes of this job "
            f"({str(error).splitlines()[0]}); see what they say, and run again: what was computed "
            f"so far {so_far}"
        ) from error


def _is_of_a_message(error: RuntimeError) -> bool:
    """Whether it is of sending or receiving: gloo raises what has no type of its own."""
    return in_a_job() and (
        isinstance(error, distributed.DistError) or re.search("gloo|NCCL", str(error)) is not None
    )
