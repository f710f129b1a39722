"""What a training takes and gives: `Recipe` and `Result`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xmix_data.options import MAX_SEED, real_number, truth, whole_number

if TYPE_CHECKING:  # the command line reads the fields, and is not to wait for torch
    from xmix_data.methods import TransferNetwork

__all__ = ["PRESETS", "Recipe", "Result", "advice_on_mixing"]

MIXED_EPOCHS = 75
"""A training that mixed to its end was behind plain fine-tuning by 1.4 points after 38 epochs, and
was not after 76 (docs/methods.md, "What it gives, in small")."""
UNMIXED_END_EPOCHS = 25
"""With an unmixed end the shortest training that was measured, 27 epochs, was not behind."""
UNMIXED_END = 0.25
"""Shortest end that this counts for, as a share; the ends that were measured were a third."""

_COUNTS = ("iterations", "batch_size", "crop", "log_every", "save_every", "test_every")
_SWITCHES = ("flip", "amp", "compile", "nesterov", "clean_statistics")
_WORDS = ("on_error", "compile_mode")
"""Kinds of a recipe's fields; the seed is a kind of its own, all others are real numbers."""


@dataclass(frozen=True)
class Recipe:
    """Numbers of a training; by default the paper's (XMixup, section 4.1; weight decay is ours).

    Each field is an option of `xmix train`, which takes its help from here.

    Args:
        iterations: Number of steps of SGD, in each phase that does not set its own.
        epochs: Passes over a phase's images, without the last images of a pass that fill no batch;
            in place of ``iterations``.
        batch_size: Number of images of a step, in each process.
        learning_rate: Learning rate of the first steps; the paper takes 0.001 for Stanford Dogs.
        drop_at: Share of the iterations after which the learning rate is divided by 10.
        momentum: Momentum of SGD.
        nesterov: Nesterov's momentum, as in later code of the paper's first author.
        weight_decay: Weight decay of SGD; methods with a regulariser of their own leave it out.
        crop: Side in pixels of random crops in training and centre crops in tests.
        flip: Mirror half of the training images.
        alpha, beta: λ ~ Beta(alpha, beta), for methods that mix two domains; of no use to others.
            Where the source is not close to the target, begin with 8 and 1 (docs/methods.md).
        unmixed: Share of the iterations, at the end, in which XMixup and Mixup mix nothing; begins
            at the nearest end of an epoch.
        clean_statistics: Measure batch statistics anew on unmixed target images at the end: mixed
            ones have less contrast.
        label_smoothing: Share of each label that is spread evenly over its label set, source and
            target apart.
        amp: Compute forward passes in bfloat16.
        compile: Compile the network with torch.compile.
        compile_mode: Mode of torch.compile; "reduce-overhead" makes CUDA graphs, which networks
            need whose kernels are shorter than their launches.
        on_error: At a damaged image, stop or take another of its class; in a test always stop.
        seed: Seed of everything random.
        log_every: Iterations from one line of metrics, and look at the loss, to the next.
        save_every: Iterations from one checkpoint to the next.
        test_every: Iterations from one test to the next; by default only at the end.

    Raises:
        ValueError: A number is impossible.

    Examples:
        >>> recipe = Recipe(iterations=300, batch_size=32)
        >>> recipe.learning_rate, recipe.rate(step=299, iterations=300)
        (0.01, 0.001)
    """

    iterations: int = 9000
    batch_size: int = 48
    learning_rate: float = 0.01
    drop_at: float = 2 / 3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    crop: int = 224
    flip: bool = True
    alpha: float = 1.0
    beta: float = 1.0
    amp: bool = False
    compile: bool = False
    on_error: Literal["raise", "replace"] = "raise"
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    test_every: int | None = None
    epochs: float | None = None
    nesterov: bool = False
    unmixed: float = 0.0
    clean_statistics: bool = False
    label_smoothing: float = 0.0
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"

    def __post_init__(self) -> None:
        self._check_kinds()
        for name in ("learning_rate", "alpha", "beta"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be a number above 0")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs is {self.epochs}; it must be a number above 0")
        if not 0 <= self.unmixed <= 1:
            raise ValueError(f"unmixed is {self.unmixed}; give a share in 0 .. 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; give a share in [0, 1)")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum, which is 0; give momentum=0.9")
        decays = 0 <= self.weight_decay < math.inf
        if not 0 <= self.drop_at <= 1 or not 0 <= self.momentum < 1 or not decays:
            raise ValueError(
                f"drop_at {self.drop_at}, momentum {self.momentum}, weight_decay "
                f"{self.weight_decay}: give 0 .. 1, 0 .. 1, and at least 0"
            )

    def _check_kinds(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name == "seed":
                value = whole_number(name, value, 0, MAX_SEED)
            elif name in _SWITCHES:
                value = truth(name, value)
            elif name in _WORDS:
                value = str(value)
            elif value is not None or name not in ("epochs", "test_every"):
                value = (
                    whole_number(name, value, 1) if name in _COUNTS else real_number(name, value)
                )
            object.__setattr__(self, name, value)  # it is frozen

    def rate(self, step: int, iterations: int) -> float:
        """Return the learning rate of a step, counted from 0, in a phase of ``iterations``."""
        return self.learning_rate * (0.1 if step >= round(self.drop_at * iterations) else 1.0)


PRESETS = {
    "paper": Recipe(
        iterations=9000,
        batch_size=48,
        learning_rate=0.01,
        drop_at=2 / 3,
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
        crop=224,
        flip=True,
        alpha=1.0,
        beta=1.0,
        label_smoothing=0.0,
        unmixed=0.0,
        clean_statistics=False,
    )
}
"""Recipes by name, for `xmix train --preset`; ``"paper"`` is section 4.1 of XMixup word for word.

The paper takes a learning rate of 0.001 for Stanford Dogs and chooses alpha for each target. It
does not tell its weight decay; 1e-4 is that of later code of its first author (lixingjian/SMILE),
which also has Nesterov's momentum."""


def advice_on_mixing(recipe: Recipe, epochs: float) -> str | None:
    """Say what to change where a method that mixes images has too few epochs to gain by it.

    Args:
        recipe: How it trains.
        epochs: Passes over the target's training images, each image counted that is seen.

    Returns:
        One line for people; ``None`` where the training is long enough.
    """
    has_end = recipe.unmixed >= UNMIXED_END
    least = UNMIXED_END_EPOCHS if has_end else MIXED_EPOCHS
    if epochs >= least or recipe.unmixed == 1:
        return None
    end = "unmixed=0.33 with clean_statistics=True (--unmixed 0.33 --clean-statistics), "
    if has_end or epochs <= 1:  # it begins where an epoch ends
        end = ""
    return (
        f"the training has {epochs:.3g} epochs of the target, and mixing has not been seen to gain "
        f"accuracy in fewer than about {least}; compare with plain fine-tuning, or try {end}more "
        "iterations (docs/methods.md)"
    )


@dataclass(frozen=True)
class Result:
    """Result of a training."""

    network: TransferNetwork
    """The trained network."""
    accuracy: float | None
    """Top-1 accuracy on the test set, in 0 .. 1, after the last step; ``None`` without one."""
