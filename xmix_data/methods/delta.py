"""DELTA (Li et al., ICLR 2019, arXiv 1901.09229): feature maps stay near the pre-trained ones."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence, Sized
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from xmix_data.methods.base import Method, Network, Phase, images_and_labels, not_negative
from xmix_data.methods.network import TransferNetwork

__all__ = ["DELTA"]

_log = logging.getLogger("xmix_data")

_LAYERS = 4
"""Most feature maps that are compared: those of the last resolutions, as a ResNet has stages."""
_TEMPERATURE = 5.0
"""What increases of the loss are divided by before the softmax."""
_HEAD_STEPS = 100
_OF_MAPS = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)
"""Modules whose output of four axes is (B, C, H, W), whatever the network around them does."""


@dataclass(eq=False)
class DELTA(Method):
    """Cross-entropy plus distances of feature maps from the pre-trained network's, by channel.

    ``alpha / 2 * sum of C * W_j * |FM_j(w, x) - FM_j(w0, x)|^2 / (H * W)`` over the images x of the
    batch, the layers, and their channels j, plus ``beta / 2 * |head|^2``; no weight decay besides.
    W_j, the attention, is larger the more the loss of the pre-trained network rises without channel
    j: the softmax over a layer's channels of the increases divided by 5. (Temperature and scale are
    those of Transfer-Learning-Library, which adds up the images of a batch of 48.)

    The layers are the last module's of each of the last four resolutions (ours; that library takes
    convolutions by name), maps of a single pixel left out, as the last stage's of a small crop are.
    Networks of tokens and those with channels last (ViT, Swin) have none.
    Each step needs a forward pass of the pre-trained network as well. The attention costs a forward
    pass for each channel, once.

    Args:
        alpha: Weight of the distances; 0.01 in that library. What suits depends on how large the
            maps are: lower it where the loss is not finite.
        beta: Weight of the squared weights of the head; 0.01 in that library.
        attention: ``False`` takes all channels as equally important, and needs no `survey`.
        attention_images: How many target images the attention is measured on.

    Raises:
        ValueError: An option is impossible; in `survey` and `loss`: nothing was prepared or
            surveyed, or the network has no feature maps, or is compiled.
    """

    name: ClassVar[str] = "delta"
    alpha: float = 0.01
    beta: float = 0.01
    attention: bool = True
    attention_images: int = 32
    weight_decay = 0.0  # the penalties take its place

    def __post_init__(self) -> None:
        not_negative("alpha", self.alpha)
        not_negative("beta", self.beta)
        if self.attention_images < 1:
            raise ValueError(f"attention_images is {self.attention_images}; give at least 1")
        self._start: TransferNetwork | None = None
        self._names: list[str] = []
        self._weights: list[torch.Tensor] | None = None

    @property
    def surveys(self) -> bool:  # type: ignore[override]
        return self.attention

    def prepare(self, network: TransferNetwork, phase: Phase) -> None:
        super().prepare(network, phase)
        self._network = network
        network.hooked = True
        self._start = deepcopy(network).eval().requires_grad_(False)
        self._names, self._weights = [], None

    @torch.no_grad()
    def survey(
        self, network: TransferNetwork, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        """Measure the attention of each channel with a head that is fitted to frozen features."""
        start = self._prepared()
        batches, count = _counted(batches)
        spread = torch.linspace(0, count - 1, min(self.attention_images, count), device="cpu")
        chosen = spread.round().long()
        self._names = []
        all_features: list[torch.Tensor] = []
        all_labels: list[torch.Tensor] = []
        few: list[torch.Tensor] = []
        seen = 0
        for images, labels in batches:
            if not seen:
                self._names = _layers(start.backbone, start, images[:1])
            all_features.append(_precise(start(images).features))
            all_labels.append(labels)
            here = chosen[(seen <= chosen) & (chosen < seen + len(labels))] - seen
            few.append(images[here.to(images.device)])  # copies; a view would hold the batch
            seen += len(labels)
        if not seen:
            raise ValueError("the target has no images")
        features, labels, images = torch.cat(all_features), torch.cat(all_labels), torch.cat(few)
        head = _fitted_head(features, labels)
        rows = chosen[chosen < seen].to(labels.device)
        labels = labels[rows]
        before = cross_entropy(head(features[rows]), labels)
        with _maps(start.backbone, self._names) as maps:
            start(images[:1])
        _log.info(
            "delta: measuring the attention of %d channels first, by a forward pass of %d images "
            "for each; attention=False (--set attention=false) does without",
            sum(maps[name].shape[1] for name in self._names),
            len(rows),
        )
        self._weights = []
        for name in self._names:
            rises = []
            for channel in range(maps[name].shape[1]):
                with _without(start.backbone, name, channel):
                    loss = cross_entropy(head(_precise(start(images).features)), labels)
                rises.append(loss - before)
            self._weights.append((torch.stack(rises) / _TEMPERATURE).softmax(0))

    def loss(self, network: Network, batch: Any, *, step: int) -> torch.Tensor:
        start = self._prepared()
        images, labels = images_and_labels(batch)
        if not self._names:
            if self.attention:
                raise ValueError("no attention is known; call survey(network, batches) first")
            with torch.no_grad():
                self._names = _layers(start.backbone, start, images[:1])
        with _maps(self._network.backbone, self._names) as maps:
            outputs = network(images)
        with torch.no_grad(), _maps(start.backbone, self._names) as before:
            start(images)
        loss = self.cross_entropies(outputs, "target", labels, step).mean()
        for number, name in enumerate(self._names):
            if name not in maps:
                raise ValueError("DELTA sees no feature maps of a compiled network; leave compile")
            change = (_precise(maps[name]) - _precise(before[name])).square().mean((2, 3)).sum(0)
            channels = len(change)
            if self._weights is None:
                weights = torch.full_like(change, 1 / channels)
            else:
                weights = self._weights[number]
            loss = loss + self.alpha / 2 * channels * (weights * change).sum()
        head = self._network.target_head
        assert head is not None
        return loss + self.beta / 2 * sum(p.square().sum() for p in head.parameters())

    def _prepared(self) -> TransferNetwork:
        if self._start is None:
            raise ValueError("no starting point is known; call prepare(network, phase) first")
        return self._start


@contextlib.contextmanager
def _maps(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Record what the named modules give in the block's forward passes."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        module.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: found.__setitem__(name, output)
        )
        for name in names
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _without(module: nn.Module, name: str, channel: int) -> Iterator[None]:
    """Set a channel of the named module's output to 0 in the block's forward passes."""

    def hook(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, channel] = 0
        return output

    handle = module.get_submodule(name).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _counted(
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[Iterable[tuple[torch.Tensor, torch.Tensor]], int]:
    """Count the images of batches by their loader's sampler; others are held all at once."""
    sampler = getattr(batches, "sampler", None)
    if isinstance(sampler, Sized):
        return batches, len(sampler)
    held = list(batches)
    return held, sum(len(labels) for _, labels in held)


@dataclass
class _Places:
    """Outputs with places (pixels, tokens) in a forward pass."""

    last: dict[tuple[int, ...], str] = field(default_factory=dict)
    """Name of the module of the last feature map of each H x W."""
    end_in_map: bool | None = None
    """Whether the last output is a feature map; ``None`` without any output."""


def _layers(module: nn.Module, network: nn.Module, image: torch.Tensor) -> list[str]:
    """Name the last part of a module, in the network's pass of an image, of each resolution.

    Tokens (B, N, C), heads (B, heads, N, D) and maps (B, H, W, C) have axes too. An output is a
    feature map if its last two axes are the H x W of a convolution, or of another module whose
    channels come first by definition. A network where the last output with places is none goes on
    with tokens, or with channels last, after convolutions that only cut patches.
    """
    sizes: set[tuple[int, ...]] = set()
    blocks, leaves = _Places(), _Places()

    def noting(name: str, places: _Places) -> Any:
        def hook(part: nn.Module, _: Any, output: Any) -> None:
            if not isinstance(output, torch.Tensor) or output.ndim not in (3, 4):
                return
            size = tuple(output.shape[2:])
            if isinstance(part, _OF_MAPS) and output.ndim == 4:
                sizes.add(size)
            if output.shape[-2] > 1:  # more places than one
                places.end_in_map = size in sizes
                if places.end_in_map:
                    places.last[size] = name

        return hook

    hooks = [
        part.register_forward_hook(
            noting(name, blocks if any(True for _ in part.children()) else leaves)
        )
        for name, part in module.named_modules()
        if name
    ]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    # Modules with children alone: what a block gives, not a part of it. A plain sequence has none.
    places = leaves if blocks.end_in_map is None else blocks
    if places.end_in_map:
        return list(places.last.values())[-_LAYERS:]
    raise ValueError(
        f"{type(module).__name__} makes no feature maps (B, C, H, W), as convolutions make them, "
        "which DELTA compares; networks of tokens or with channels last (ViT, Swin) make none. "
        "Choose another method for it, such as L2SP or BSS"
    )


def _fitted_head(features: torch.Tensor, labels: torch.Tensor) -> nn.Linear:
    """Fit a linear classifier to features (N, D)."""
    like: dict[str, Any] = {"device": features.device, "dtype": features.dtype}
    head = nn.Linear(features.shape[1], int(labels.max()) + 1, **like)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=_HEAD_STEPS)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(head(features), labels) + 1e-4 * head.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return head.requires_grad_(False)


def _precise(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float32 at least: differences of half precision are coarse."""
    return x if x.dtype == torch.float64 else x.float()
