"""The networks that methods train: a pre-trained backbone and a linear head for each label set.

Comes in: images (B, 3, H, W). Goes out: `Outputs`. Every model that ends in a linear classifier
becomes a backbone by `split_classifier`; its rows can start a source head.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import torch
from torch import nn

from xmix_data.backbones import in_eval_mode, main_output, output_layer, put_in_place
from xmix_data.errors import first_line

__all__ = ["Outputs", "TransferNetwork", "imagenet_wnids", "source_head", "split_classifier"]

_log = logging.getLogger("xmix_data")

_WNID = re.compile(r"n\d{8}(?!\d)")
_WAY_OUT = (
    "let a torch.nn.Linear make it; where it is the features (B, D) already, end the network in an "
    "identity: torch.nn.Sequential(network, torch.nn.Identity())"
)
_AUXILIARY = ("AuxLogits", "aux1", "aux2")
"""Names of the second classifiers of Inception v3 and GoogLeNet, used in training mode only."""


class Outputs(NamedTuple):
    """Outputs of a network for B images: features and logits."""

    features: torch.Tensor
    """(B, D) pooled features, the input of the heads."""
    target_logits: torch.Tensor | None
    """(B, n) logits of the target classes; ``None`` where the network has no target head."""
    source_logits: torch.Tensor | None
    """(B, m) logits of the source classes; ``None`` where the network has no source head."""


class TransferNetwork(nn.Module):
    """A backbone with a target head, a source head, or both; images (B, 3, H, W) -> `Outputs`.

    The class of an image is the arg max of its target logits, whatever the heads.

    Args:
        backbone: Module from images to features (B, D); of several outputs it is the one that
            `xmix_data.backbones.main_output` takes.
        target_head: Linear layer D -> n, or ``None``.
        source_head: Linear layer D -> m, or ``None``; see the function `source_head`.
        joint: Put both heads' rows, the target's first, into one linear layer D -> n + m. Its
            logits come out in two blocks; what makes it joint is a loss with one softmax over both.

    Raises:
        ValueError: The heads are missing or do not fit each other; on a call: the backbone's
            features are not (B, D).

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
        >>> network = TransferNetwork(backbone, torch.nn.Linear(12, 4), torch.nn.Linear(12, 6))
        >>> outputs = network(torch.zeros(8, 3, 32, 32))
        >>> outputs.features.shape, outputs.target_logits.shape, outputs.source_logits.shape
        (torch.Size([8, 12]), torch.Size([8, 4]), torch.Size([8, 6]))
    """

    target_head: nn.Linear | None
    source_head: nn.Linear | None
    joint_head: nn.Linear | None
    autocast_dtype: torch.dtype | None = None
    """Half precision that autocast computes the forward pass in; ``None``: as it comes.

    Outputs are float32 then: losses are computed, and gradients flow back, outside autocast."""
    hooked: bool = False
    """Whether a method's hooks look into the backbone.

    Read in the forward pass, as `torch.compile` guards what a pass reads, and no hooks: a graph
    that was compiled without them would be taken for a network with them."""

    def __init__(
        self,
        backbone: nn.Module,
        target_head: nn.Linear | None = None,
        source_head: nn.Linear | None = None,
        *,
        joint: bool = False,
    ) -> None:
        super().__init__()
        widths = [h.in_features for h in (target_head, source_head) if h is not None]
        if not widths:
            raise ValueError("a network needs a head; give target_head, source_head, or both")
        if min(widths) != max(widths):
            raise ValueError(
                f"the target head takes {widths[0]} features and the source head {widths[1]}; "
                "give both the backbone's number"
            )
        self.backbone = backbone
        self.features = widths[0]
        """Number D of features that the heads take."""
        self.target_head = self.source_head = self.joint_head = None
        if not joint:
            self.target_head, self.source_head = target_head, source_head
        elif target_head is not None and source_head is not None:
            self.joint_head = _one_layer(target_head, source_head)
            self._blocks = [target_head.out_features, source_head.out_features]
        else:
            raise ValueError("a joint head is made of both heads; give target_head and source_head")

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads: of ``"target"`` and ``"source"``, or ``("joint",)``."""
        names = ("target", "source", "joint")
        return tuple(name for name in names if getattr(self, f"{name}_head") is not None)

    def train_heads(self, names: Iterable[str]) -> None:
        """Let these heads learn and no others: no optimiser or DDP waits for an unused head.

        Raises:
            ValueError: The network has no such head.
        """
        names = tuple(names)
        for name in names:
            if name not in self.heads:
                raise ValueError(
                    f"the method trains a {name} head, and the network has only "
                    f"{' and '.join(self.heads)}; build it with the heads that the phase names"
                )
        for name in self.heads:
            getattr(self, f"{name}_head").requires_grad_(name in names)

    def forward(self, images: torch.Tensor) -> Outputs:
        bool(self.hooked)  # makes torch.compile guard it
        if self.autocast_dtype is None:
            return self._forward(images)
        with torch.autocast(images.device.type, self.autocast_dtype):
            outputs = self._forward(images)
        return Outputs(*(None if x is None else x.float() for x in outputs))  # type: ignore[arg-type]

    def _forward(self, images: torch.Tensor) -> Outputs:
        made = self.backbone(images)
        features = main_output(made)  # of those of transformers, and of training mode alone
        if features is None or features.ndim != 2 or features.shape[1] != self.features:
            kind, shape = type(made).__name__, None if features is None else tuple(features.shape)
            found = f"a {kind}" if shape is None else f"features of shape {shape}"
            raise ValueError(
                f"the backbone makes {found}, and the heads take (B, {self.features}); "
                "pool and flatten features in the backbone, or change the heads"
            )
        if self.joint_head is not None:
            target, source = self.joint_head(features).split(self._blocks, dim=1)
            return Outputs(features, target, source)
        return Outputs(
            features,
            None if self.target_head is None else self.target_head(features),
            None if self.source_head is None else self.source_head(features),
        )


@torch.no_grad()
def _one_layer(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    joint = nn.Linear(
        first.in_features,
        first.out_features + second.out_features,
        bias=first.bias is not None or second.bias is not None,
        device=first.weight.device,
        dtype=first.weight.dtype,
    )
    joint.weight.copy_(torch.cat([first.weight, second.weight]))
    if joint.bias is not None:
        joint.bias.copy_(
            torch.cat(
                [
                    h.weight.new_zeros(len(h.weight)) if h.bias is None else h.bias
                    for h in (first, second)
                ]
            )
        )
    return joint


def split_classifier(model: nn.Module, size: int = 224) -> tuple[nn.Module, nn.Linear | None]:
    """Cut a classifier in two: what makes the features, and the linear layer on top.

    The layer is found by the forward pass of an image (`xmix_data.backbones.output_layer`), however
    the model is built. Second classifiers for training (Inception v3, GoogLeNet) are switched off.

    Args:
        model: Module from images to logits; it is copied and stays as it is.
        size: Side in pixels of an image that the model takes.

    Returns:
        A backbone, images -> (B, D), and the layer D -> classes that it lost; ``None`` where the
            model ends in an ``nn.Identity`` already, and so has no classifier.

    Raises:
        ValueError: The output is not made by a linear layer, the model takes no such image, or it
            needs the layer for more than its output.

    Examples:
        >>> pool = torch.nn.AdaptiveAvgPool2d(2)
        >>> model = torch.nn.Sequential(pool, torch.nn.Flatten(), torch.nn.Linear(12, 10))
        >>> backbone, classifier = split_classifier(model)
        >>> backbone(torch.zeros(8, 3, 32, 32)).shape, classifier
        (torch.Size([8, 12]), Linear(in_features=12, out_features=10, bias=True))
    """
    backbone = _copied(model)
    if getattr(backbone, "aux_logits", False):  # of torchvision's, whose forward pass asks for it
        setattr(backbone, "aux_logits", False)  # noqa: B010, no attribute of every module
        for name in _AUXILIARY:
            if hasattr(backbone, name):
                setattr(backbone, name, None)
    name, last = output_layer(backbone, size)
    if name and isinstance(last, nn.Identity):
        return backbone, None
    if not name or not isinstance(last, nn.Linear):
        raise ValueError(
            f"the output of {type(model).__name__} must come from one linear layer inside it, and "
            f"{maker(name, last)} makes it; {_WAY_OUT}"
        )
    _cut(backbone, name, last, size)
    return backbone, last


def _copied(model: nn.Module) -> nn.Module:
    try:
        return deepcopy(model)
    except RuntimeError as error:  # a weight that is computed before each pass, as weight_norm does
        raise ValueError(
            f"{type(model).__name__} cannot be copied ({first_line(error)}); take parametrizations "
            "of torch.nn.utils.parametrizations, or remove them (torch.nn.utils.remove_weight_norm)"
        ) from error


@torch.no_grad()
def _cut(model: nn.Module, name: str, last: nn.Linear, size: int) -> None:
    """Cut the last layer off, and look whether the rest makes what that layer takes.

    It does not where the layer is used twice, and fails where the layer's size is asked for.
    """
    random = torch.Generator("cpu").manual_seed(0)  # the global one goes on as it would have
    image = torch.rand(1, 3, size, size, generator=random, device="cpu").to(
        next(model.parameters())
    )
    with in_eval_mode(model):
        before, again = (main_output(model(image)) for _ in range(2))
        put_in_place(model, last, nn.Identity())
        try:
            features = main_output(model(image))
            after = None if features is None else last(features)
        except Exception as error:  # a forward pass of somebody else's raises what it likes
            raise ValueError(
                f"{type(model).__name__} fails without {maker(name, last)}, its classifier "
                f"({first_line(error)}); let its forward pass only call that layer, and once"
            ) from error
    # What gives twice another output, by dropout that is always on, say, cannot be compared.
    if _alike(before, again) and not _alike(before, after):
        raise ValueError(
            f"{type(model).__name__} gives other features without {maker(name, last)}, its "
            "classifier, which it uses more than once; give it a layer of its own for its output"
        )


def _alike(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape:
        return False
    if one.is_meta:
        return True
    one, other = one.float(), other.float()
    return torch.allclose(one, other, 1e-3, 1e-3 * float(one.abs().max()), equal_nan=True)


def maker(name: str, layer: nn.Module | None) -> str:
    """Say in a message which layer `output_layer` found."""
    return f"{name} ({type(layer).__name__})" if name else "no layer inside it"


def source_head(
    classifier: nn.Linear | None,
    features: int,
    class_names: Sequence[str],
    rows: Sequence[int] | None = None,
) -> nn.Linear:
    """Make a source head that starts from the pre-trained classifier where it knows the classes.

    Rows are found by WordNet id: the classifier has the 1,000 outputs of ImageNet, and a class
    name begins with an id of those, as in ``n01440764`` or ``n01440764 tench``. Equal numbers of
    classes alone prove nothing; for a backbone pre-trained on the source itself give
    ``rows=range(m)``. Classes without a row, and all where the classifier computes something else
    of its rows than `nn.Linear`, start as `nn.Linear` starts. One log line tells how many rows were
    taken.

    Args:
        classifier: Layer that `split_classifier` cut off; ``None``: nothing to start from.
        features: Number D of features that the backbone makes.
        class_names: Names of the m source classes, by id.
        rows: For each source class the classifier's output that means the same.

    Returns:
        A layer D -> m, with the classifier's dtype, device, and bias or none.

    Raises:
        ValueError: The classifier takes other features, or ``rows`` do not fit.

    Examples:
        >>> classifier = torch.nn.Linear(512, 1000)  # a pre-trained one, of split_classifier
        >>> head = source_head(classifier, 512, ["n01443537 goldfish", "my own class"])
        >>> head
        Linear(in_features=512, out_features=2, bias=True)
        >>> torch.equal(head.weight[0], classifier.weight[1])  # goldfish is ImageNet's class 1
        True
    """
    if classifier is None:
        if rows is not None:
            raise ValueError("rows are given, and there is no classifier to take them from")
        head = nn.Linear(features, len(class_names), device="cpu", dtype=torch.float32)
        found = dict[int, int]()
    else:
        if rows is not None and not _is_linear(classifier):
            raise ValueError(
                f"the classifier is a {type(classifier).__name__}, which computes something else "
                "of its rows than torch.nn.Linear; leave rows (--same-rows) out"
            )
        if classifier.in_features != features:
            raise ValueError(
                f"the classifier takes {classifier.in_features} features, and the backbone makes "
                f"{features}; give both of one model"
            )
        head = nn.Linear(
            features,
            len(class_names),
            bias=classifier.bias is not None,
            device=classifier.weight.device,
            dtype=classifier.weight.dtype,
        )
        found = {}
        if _is_linear(classifier):
            found = _rows(classifier.out_features, class_names, rows)
        own, taken = list(found), list(found.values())
        with torch.no_grad():
            head.weight[own] = classifier.weight[taken]
            if head.bias is not None:
                head.bias[own] = classifier.bias[taken]
    _log.info(
        "source head: %d of %d classes start from rows of the model's classifier%s",
        len(found),
        len(class_names),
        ""
        if found
        else "; where it was trained on these very classes, give source_rows (--same-rows)",
    )
    return head


@torch.no_grad()
def _is_linear(layer: nn.Linear) -> bool:
    """Return whether the logits are those of its rows, as a cosine classifier's are not.

    What it computes decides, not its class: a `JointHead` is linear, in evaluation by some rows.
    """
    x = torch.linspace(-1, 1, layer.in_features, device="cpu").to(layer.weight)[None]
    made = layer(x)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    return _alike(expected[:, : made.shape[1]], made)


def _rows(outputs: int, class_names: Sequence[str], rows: Sequence[int] | None) -> dict[int, int]:
    """Find the classifier's output of each source class id that has one."""
    if rows is not None:
        if len(rows) != len(class_names) or not all(0 <= row < outputs for row in rows):
            raise ValueError(
                f"rows are {len(rows)} numbers for {len(class_names)} source classes; give one "
                f"for each, from 0 to {outputs - 1}"
            )
        return dict(enumerate(rows))
    if outputs != len(imagenet_wnids()):
        return {}
    row_of = {wnid: row for row, wnid in enumerate(imagenet_wnids())}
    matches = ((label, _WNID.match(name)) for label, name in enumerate(class_names))
    return {label: row_of[m.group()] for label, m in matches if m and m.group() in row_of}


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """Read the 1,000 WordNet ids of ImageNet's classes, in the order of pre-trained classifiers."""
    text = files("xmix_data.methods").joinpath("imagenet_wnids.txt").read_text(encoding="ascii")
    return tuple(text.split())
