"""Metrics of a run: JSON lines and TensorBoard; a loss that is not finite stops all processes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed, nn

from xmix_data.errors import MissingDependencyError, XMixError
from xmix_data.files import whole_file
from xmix_data.loader import ImageLoader, XMixLoader
from xmix_data.plan import PlanRows
from xmix_data.ranks import average_in_place, get_rank, get_world_size

__all__ = [
    "MetricsLog",
    "StepLoss",
    "finite_names",
    "means_over_ranks",
    "named",
    "require_finite",
]

_MAX_NAMED = 4
"""Most samples that are named of a batch whose loss is not finite."""


class MetricsLog:
    """Metrics as JSON lines, and for TensorBoard; only the first process writes.

    Args:
        folder: Folder to write to; ``None`` writes nothing.
        tensorboard: Write for TensorBoard as well.

    Raises:
        ValueError: TensorBoard is to write, and there is no folder.
        OSError: The folder cannot be written.
        MissingDependencyError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path | None, tensorboard: bool) -> None:
        self.folder, self._board = folder, None
        if folder is None:
            if tensorboard:
                raise ValueError("tensorboard writes into output; give one")
            return
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder}: is a file; give the name of a folder")
        folder.mkdir(parents=True, exist_ok=True)
        if get_rank() == 0:
            self._append("")  # can it be written?
            if tensorboard:
                self._board = _summary_writer(folder)

    def write(self, phase: int, step: int, **values: float) -> None:
        """Write the values of a step of a phase as one line."""
        if self.folder is None or get_rank() > 0:
            return
        line = {"phase": phase, "step": step, **values}
        self._append(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"phase {phase}/{name}", value, step)

    def _append(self, text: str) -> None:
        assert self.folder is not None
        path = self.folder / "metrics.jsonl"
        try:
            with path.open("a") as stream:
                stream.write(text)
        except OSError as error:
            message = f"{path}: cannot be written ({error.strerror}); free space or write elsewhere"
            raise type(error)(error.errno, message) from error

    def cut(self, phase: int, step: int, *, test_again: bool = False) -> None:
        """Forget what was logged after a checkpoint: it will be logged again."""
        assert self.folder is not None
        if get_rank() > 0:
            return
        path, here = self.folder / "metrics.jsonl", (phase, step)
        kept = []
        for text in path.read_text().splitlines(keepends=True):
            if not text.endswith("\n"):
                break  # a process that was killed wrote half a line
            try:
                line = json.loads(text)
                at = (line["phase"], line["step"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}: is no log of a training ({text.strip()[:60]}); choose another "
                    "--output, or delete it"
                ) from error
            if at < here or (at == here and not (test_again and "accuracy" in line)):
                kept.append(text)
        with whole_file(path) as stream:
            stream.write("".join(kept).encode())

    def close(self) -> None:
        """End the writing for TensorBoard."""
        if self._board is not None:
            self._board.close()


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            f"TensorBoard cannot be imported ({error}): pip install tensorboard"
        ) from error
    return SummaryWriter(folder)


class StepLoss(NamedTuple):
    """Loss of a step, still on its device, and what it was computed from."""

    step: int
    """Number of the step, counted from 1."""
    loss: torch.Tensor
    """Loss of the step, a scalar."""
    rows: PlanRows | None
    """Rows of the batch, which name its samples."""


def finite_names(network: nn.Module) -> list[str]:
    """Name the parameters and buffers of a network, statistics of batch norms too, that are finite.

    Training must leave these finite. Others are made otherwise: masks of attention hold -inf.
    """
    return [name for name, value in _held(network).items() if bool(value.isfinite().all())]


def named(network: nn.Module, names: Iterable[str]) -> list[torch.Tensor]:
    """Return the parameters and buffers of these names, as they are now."""
    held = _held(network)
    return [held[name] for name in names if name in held]


def _held(network: nn.Module) -> dict[str, torch.Tensor]:
    return dict([*network.named_parameters(), *network.named_buffers()])


def require_finite(
    losses: list[StepLoss],
    loader: ImageLoader | XMixLoader,
    weights: Sequence[torch.Tensor],
    method: str,
) -> None:
    """Stop all processes if a loss since the last look, or a weight, is not finite.

    Args:
        losses: Losses since the last look, the latest last; the list is emptied.
        loader: Loader that names the samples of a batch.
        weights: Weights and buffers that are looked at too; see `finite_names`.
        method: Name of the method, for the message.

    Raises:
        XMixError: A loss, weight or buffer is not finite; names the step and samples of its batch.
    """
    looks = [torch.isfinite(one.loss) for one in losses]
    if weights:
        looks.append(torch.stack([value.isfinite().all() for value in weights]).all())
    own = torch.stack(looks).float()
    everywhere = own.clone()
    if get_world_size() > 1:  # no process goes on, or saves, after the error of another
        distributed.all_reduce(everywhere, distributed.ReduceOp.MIN)
    if everywhere.all():
        losses.clear()
        return
    which = everywhere.tolist().index(0)
    step, loss, rows = losses[min(which, len(losses) - 1)]
    if own[which]:
        raise XMixError(
            f"{method}: the loss of another process is not finite in step {step}; see what it says"
        )
    found = f"the loss is {loss}" if which < len(losses) else "a weight is not finite"
    names = [] if rows is None else loader.describe(rows)
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    raise XMixError(
        f"{method}: {found} in step {step}, from {'; '.join(names[:_MAX_NAMED])}{more}; lower "
        "the learning rate or the weight of a penalty, or look at these images. The checkpoint, if "
        "there is one, holds what was before"
    )


def means_over_ranks(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Average each value over all processes."""
    means = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    if get_world_size() > 1:
        average_in_place([means])
    return dict(zip(values, means.tolist(), strict=True))
