"""Backbones: pre-trained classifiers by name, what they want to see, and their features.

Comes in: a name and weights. Goes out: a `Backbone`; from images (B, 3, H, W) features (B, D).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import logging
import os
import sys
import urllib.error
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from xmix_data.errors import MissingDependencyError, first_line
from xmix_data.normalise import IMAGENET_MEAN, IMAGENET_STD
from xmix_data.remote import path_or_url

__all__ = [
    "Backbone",
    "as_backbone",
    "in_eval_mode",
    "load_backbone",
    "main_output",
    "output_layer",
    "penultimate_features",
    "put_in_place",
    "state_hash",
]

_log = logging.getLogger("xmix_data")

_WITHOUT_LINEAR = "squeezenet"
"""Prefix of models that classify by a convolution: what comes before it is no feature vector."""
_TIMM = "timm:"
_DEFAULT = "DEFAULT"
"""Torchvision's name for the newest weights of a model."""
_SIZE = 224
"""Side in pixels of the images that most classifiers were trained on."""
_SIZES = {"inception_v3": 299}
_OF_ONE_SIZE = "maxvit"
"""Prefix of torchvision's models that, like its vision transformers, take one size only."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network, and what the images look like that it was trained on."""

    network: nn.Module
    """Module from images (B, 3, H, W) to logits or features."""
    name: str
    """Name of the model, which a pairing's provenance keeps."""
    size: int = _SIZE
    """Side in pixels of the test images."""
    one_size: bool = False
    """Whether the network takes images of no other size."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel, in 0..1 units."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of each channel, in 0..1 units."""

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the network's parameters and buffers as they are now."""
        return state_hash(self.network)

    def side(self, crop: int) -> int:
        """Return the side in pixels of an image that it takes: a crop's, or the only one."""
        return self.size if self.one_size else crop


def as_backbone(model: str | nn.Module | Backbone) -> Backbone:
    """Make a `Backbone` of what a user may give.

    Args:
        model: Name of a classifier, which is taken with its default weights; a module, whose images
            have ImageNet's mean and standard deviation and 224 pixels, or what timm's modules say
            in their ``pretrained_cfg``; or a `Backbone`, which is returned as it is.

    Raises:
        ValueError: There is no such model, or it is not in float32.
        OSError: The weights could not be downloaded.
    """
    if not isinstance(model, (str, nn.Module, Backbone)):
        raise ValueError(
            f'backbone is {model!r}; give the name of a model, e.g. "resnet50", a torch.nn.Module '
            "that ends in a linear classifier, or a Backbone"
        )
    if isinstance(model, nn.Module):
        backbone = _of_module(model)
    else:
        backbone = load_backbone(model, "default") if isinstance(model, str) else model
    if others := {p.dtype for p in backbone.network.parameters()} - {torch.float32}:
        raise ValueError(
            f"{backbone.name} is in {', '.join(map(str, others))}, and its images come in float32; "
            "give it in float32 (network.float())"
        )
    return backbone


def _of_module(network: nn.Module) -> Backbone:
    name = type(network).__name__
    if not isinstance(getattr(network, "pretrained_cfg", None), Mapping):
        return Backbone(network, name)
    # It may have been made for another size than the pre-trained one, and is not held to it.
    return dataclasses.replace(_seen_by_timm(network, name), one_size=False)


class _Call(NamedTuple):
    """Call of a module in a forward pass."""

    name: str
    module: nn.Module
    input: Any
    output: Any
    version: int | None
    """Version of the output at that time; a change in place, as by an activation, raises it."""

    def made(self, result: Any) -> bool:
        """Return whether this call made the network's result, and nothing changed it afterwards."""
        tensor = main_output(result)
        made = tensor is not None and self.output is tensor
        return made and self.version == _version(tensor)


def main_output(result: Any) -> torch.Tensor | None:
    """Return the tensor that a network's result is about; ``None`` where it has none.

    Of several tensors it is the logits, as models of transformers name them, or the first.

    Args:
        result: What a forward pass returned: a tensor, or a tuple, list or mapping of such.
    """
    while not isinstance(result, torch.Tensor):
        if isinstance(result, Mapping) and result:
            result = result.get("logits", next(iter(result.values())))
        elif isinstance(result, (tuple, list)) and result:
            result = result[0]
        else:
            return None
    return result


def _version(tensor: Any) -> int | None:
    """Return how often a tensor was changed in place; one of inference mode counts nothing."""
    if not isinstance(tensor, torch.Tensor) or tensor.is_inference():
        return None
    return tensor._version


@contextlib.contextmanager
def _calls(network: nn.Module, *kinds: type[nn.Module]) -> Iterator[dict[type, list[_Call]]]:
    """Record, by kind, calls of modules without children in the block's forward pass.

    They are the calls that made one vector an image, as a classifier does: there are few of them,
    and they are small, so that the pass needs no more memory. Of `nn.Module`, any kind, it is the
    last call alone.
    """
    calls: dict[type, list[_Call]] = {kind: [] for kind in kinds}

    def note(kind: type, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if kind is nn.Module:
                calls[kind].clear()
            elif getattr(output, "ndim", 0) != 2:
                return
            made = _Call(name, module, inputs[0] if inputs else None, output, _version(output))
            calls[kind].append(made)

        return hook

    hooks = [
        module.register_forward_hook(note(kind, name))
        for name, module in network.named_modules()
        if not any(True for _ in module.children())
        for kind in [next((kind for kind in kinds if isinstance(module, kind)), None)]
        if kind is not None
    ]
    try:
        with _uncompiled():
            yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Run compiled networks as they are: a graph that was compiled before knows of no hooks."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and it takes long to import
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@torch.no_grad()
def penultimate_features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Compute the features that a classifier's last linear layer sees.

    Args:
        model: A module in eval mode.
        images: (B, 3, H, W) normalised images.

    Returns:
        (B, D) features, the input of the last linear layer where that layer makes the output;
            otherwise the output itself, averaged over space where it is (B, D, h, w).

    Raises:
        ValueError: The result is no vector per image, or the model does not take the images.
    """
    if isinstance(model, nn.DataParallel):  # it gathers copies of what its modules make
        model = model.module
    with _calls(model, nn.Linear) as calls:
        output = _passed(model, images)
    features = next((call.input for call in calls[nn.Linear] if call.made(output)), None)
    if features is None:
        features = main_output(output)
    if isinstance(features, torch.Tensor) and features.ndim == 4:
        features = features.mean((2, 3))
    if not isinstance(features, torch.Tensor) or features.shape != (
        len(images),
        features.shape[-1],
    ):
        shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(output)
        raise ValueError(
            f"{type(model).__name__} makes {shape} of {len(images)} images; give a model that ends "
            "in a linear classifier or makes one feature vector an image"
        )
    return features


@torch.no_grad()
def output_layer(
    network: nn.Module, size: int | tuple[int, int] = _SIZE
) -> tuple[str, nn.Module | None]:
    """Find the layer that makes a network's output, by the forward pass of one black image.

    How a network is defined says little: the last module that EfficientNet-Lite defines, for one,
    is an activation.

    Args:
        network: Module from images to logits; its modes stay as they are.
        size: Side of the image in pixels, or (height, width), which the network must take.

    Returns:
        Name and module of the layer: the `nn.Linear` whose output the network gives out
            unchanged, else such an `nn.Identity`, else such a module without children. ``""`` and
            ``None`` where no module made the output alone, as in the mean of two classifiers.

    Raises:
        ValueError: The network does not take the image.
    """
    parameter = next(network.parameters(), torch.empty(0, device="cpu"))
    height, width = (size, size) if isinstance(size, int) else size
    image = torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype)
    with in_eval_mode(network), _calls(network, nn.Linear, nn.Identity, nn.Module) as calls:
        output = _passed(network, image)
    made = (call for of_kind in calls.values() for call in of_kind if call.made(output))
    return next(((call.name, call.module) for call in made), ("", None))


def _passed(network: nn.Module, images: torch.Tensor) -> Any:
    """Return what a network makes of images (B, 3, H, W), or say that it does not take them."""
    try:
        return network(images)
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # a forward pass of somebody else's raises what it likes
        _, _, height, width = images.shape
        raise ValueError(
            f"{type(network).__name__} does not take an image of 3 x {height} x {width} pixels "
            f"({first_line(error)}); give a network of images, and their size: "
            "Backbone(network, name, size=..., one_size=True)"
        ) from error


@contextlib.contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for a block; each part returns to its own mode."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def put_in_place(network: nn.Module, old: nn.Module, new: nn.Module) -> bool:
    """Put a module in the place of another, under all names that a network has for it.

    Returns:
        Whether the network has it.
    """
    modules = network.named_modules(remove_duplicate=False)
    names = [name for name, module in modules if module is old]
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, new)
    return bool(names)


def load_backbone(name: str, weights: str | os.PathLike[str], size: int | None = None) -> Backbone:
    """Load a classifier of torchvision, of timm or of your own by name, in eval mode.

    Args:
        name: Name of the model, e.g. ``"resnet50"``, see `torchvision.models.list_models`; or
            ``"timm:NAME"``, see `timm.list_models`; or ``"FILE.py:FUNCTION"`` or
            ``"MODULE:FUNCTION"``: a function without arguments that makes a module, or a `Backbone`
            where mean, standard deviation or size are its own.
        weights: ``"default"`` (downloaded once; of your own: as the function makes them),
            ``"none"`` (random, the same in every run; of your own: an error), a name of
            torchvision's weights for the model, e.g. ``"IMAGENET1K_V1"``, or a file with a state
            dict, read with ``weights_only=True``, or by safetensors if its name ends so. Where the
            file has no classifier, the network gives features.
        size: Side in pixels of the images that it is going to see, where it takes several sizes;
            default the model's own. Weights of a file are tried on such an image.

    Raises:
        ValueError: No such model, or the weights do not fit it, or are a URL.
        FileNotFoundError: The weights file, or your own, does not exist.
        MissingDependencyError: timm or safetensors is not installed.
        OSError: The weights could not be downloaded.

    Examples:
        >>> backbone = load_backbone("resnet18", "none")
        >>> backbone.size, backbone.one_size
        (224, False)
        >>> backbone.network(torch.zeros(1, 3, 224, 224)).shape
        torch.Size([1, 1000])
    """
    own = ":" in name and not name.startswith(_TIMM)
    if own and weights == "none":
        raise ValueError(f"{name} makes its own weights; leave --weights none out")
    released = None if own or weights == "none" else _released(name, weights)
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = [torch.cuda.current_device()] if in_use else []
    with torch.random.fork_rng(devices), _torch_as_it_comes():
        torch.default_generator.manual_seed(0)
        if devices:
            torch.cuda.manual_seed(0)
        backbone = _load_own(name) if own else _load_named(name, released)
    if released is None and weights not in ("default", "none"):
        place = path_or_url(weights)
        if isinstance(place, str):
            raise ValueError(f"{place}: weights are read from files; fetch it, and give its path")
        _load_weights(backbone.network, place, backbone.side(size or backbone.size))
    backbone.network.eval()
    return backbone


@contextlib.contextmanager
def _torch_as_it_comes() -> Iterator[None]:
    """Make tensors on the CPU, in float32, with gradients, whatever the caller has set."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.inference_mode(False):
            yield
    finally:
        torch.set_default_dtype(dtype)


def _released(name: str, weights: str | os.PathLike[str]) -> str | None:
    """Return which of a model's published weights are meant; ``None``: those of a file.

    Those of timm are a part of the model's name.
    """
    if weights == "default":
        return _DEFAULT
    from torchvision import models

    known = models.get_model_weights(name).__members__ if name in models.list_models() else {}
    return str(weights) if str(weights) in known else None


def _load_named(name: str, released: str | None) -> Backbone:
    load = _load_timm if name.startswith(_TIMM) else _load_torchvision
    try:
        return load(name, released)
    except (urllib.error.URLError, OSError) as error:
        raise OSError(
            f"the weights of {name} cannot be downloaded ({error}); check the network, or "
            "give a file (--weights FILE), or none (--weights none)"
        ) from error


def _load_torchvision(name: str, released: str | None) -> Backbone:
    from torchvision import models

    known = [n for n in models.list_models(models) if not n.startswith(_WITHOUT_LINEAR)]
    if name not in known:
        close = [n for n in known if n[:4] == name[:4]] or ["resnet18", "resnet50"]
        raise ValueError(
            f"torchvision has no classifier {name!r}; there are {', '.join(close)} "
            f"(those of timm: {_TIMM}NAME)"
        )
    network = models.get_model(name, weights=released)
    size = int(getattr(network, "image_size", _SIZES.get(name, _SIZE)))
    one_size = hasattr(network, "image_size") or name.startswith(_OF_ONE_SIZE)
    if released is None:
        return Backbone(network, name, size, one_size)
    seen = models.get_model_weights(name)[released].transforms()
    return Backbone(network, name, seen.crop_size[0], one_size, tuple(seen.mean), tuple(seen.std))


def _load_timm(name: str, released: str | None) -> Backbone:
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} needs timm, which cannot be imported ({error}): pip install timm"
        ) from error
    short = name.removeprefix(_TIMM)
    if not timm.is_model(short):
        close = timm.list_models(f"*{short.split('.')[0]}*")[:8] or ["resnet50", "convnext_tiny"]
        raise ValueError(f"timm has no model {short!r}; there are {', '.join(close)}")
    try:
        network = timm.create_model(short, pretrained=released is not None)
    except RuntimeError as error:
        if released is None:
            raise
        raise OSError(str(error)) from error  # what timm says of weights that do not exist
    return _seen_by_timm(network, name)


def _seen_by_timm(network: Any, name: str) -> Backbone:
    """Make a `Backbone` of a module of timm, which says what its images look like."""
    seen = network.pretrained_cfg
    return Backbone(
        network,
        name,
        int(seen["input_size"][-1]),
        bool(seen.get("fixed_input_size")),
        tuple(seen["mean"]),
        tuple(seen["std"]),
    )


def _load_own(name: str) -> Backbone:
    """Call the function of ``FILE.py:FUNCTION`` or ``MODULE:FUNCTION``.

    It imports what lies beside the file, or in the current folder, as under ``python FILE.py``.
    """
    place, _, function = os.path.expanduser(name).rpartition(":")
    folder = Path(place).parent if place.endswith(".py") else Path()
    sys.path.insert(0, str(folder.resolve()))
    try:
        return _made_by(name, place, function)
    finally:
        sys.path.remove(str(folder.resolve()))


def _made_by(name: str, place: str, function: str) -> Backbone:
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise FileNotFoundError(f"{place}: no such file; give FILE.py:FUNCTION")
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(spec.name, module)  # dataclasses and pickle look there
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            raise _not_imported(place, error) from error
    else:
        try:
            module = importlib.import_module(place)
        except ImportError as error:
            raise ValueError(
                f"{name}: module {place!r} cannot be imported ({error}); give FILE.py:FUNCTION, "
                "MODULE:FUNCTION, timm:NAME, or a name of torchvision"
            ) from error
    make = getattr(module, function, None)
    if not callable(make):
        raise ValueError(f"{place} has no function {function!r}; give FILE.py:FUNCTION")
    try:
        made = make()
    except ImportError as error:
        raise _not_imported(name, error) from error
    if isinstance(made, Backbone):
        return made
    if not isinstance(made, nn.Module):
        raise ValueError(
            f"{name} makes a {type(made).__name__}; it must make a torch.nn.Module or a Backbone"
        )
    return Backbone(made, f"{Path(place).name}:{function}")


def _not_imported(place: str, error: ImportError) -> ValueError:
    return ValueError(
        f"{place}: imports what cannot be imported ({error}); install it, or put it beside the file"
    )


def _load_weights(network: nn.Module, path: Path, size: int) -> None:
    """Load a state dict, or what `xmix train` wrote.

    The classifier takes the file's size; where the file has none, the network loses its own.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such weights file; give a state dict, default, none, or a name of "
            "torchvision's weights for this model, e.g. IMAGENET1K_V1"
        )
    state = _read_state(path)
    name, layer = output_layer(network, size)
    head = name if isinstance(layer, nn.Linear) else None
    for key in ("state_dict", "model", "network"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}, expected a state dict")
    state = _unwrapped(state, network.state_dict(), head, path)
    if head is not None and layer is not None:
        if any(key.startswith(f"{head}.") for key in state):
            _resize_classifier(network, head, state)
        else:  # its own is random, and nobody may take it for a pre-trained one
            put_in_place(network, layer, nn.Identity())
            _log.info("%s: has no classifier; %s gives features", path, type(network).__name__)
    own = network.state_dict()
    shape_of = [{k: getattr(v, "shape", None) for k, v in held.items()} for held in (state, own)]
    wrong = [key for key in state if key in own and len({held[key] for held in shape_of}) > 1]
    # A module knows the names of its earlier versions: batch norms did not count batches once.
    fitting = {key: value for key, value in state.items() if key not in wrong}
    missing, unexpected = network.load_state_dict(fitting, strict=False)
    lacking = [key for key in missing if key not in wrong]
    for kind, keys in (("lacks", lacking), ("has unknown", unexpected), ("misshapes", wrong)):
        if keys:
            raise ValueError(
                f"{path}: {kind} {keys[0]!r}; the weights are not those of {type(network).__name__}"
            )


def _read_state(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise MissingDependencyError(
                f"{path} needs safetensors, which cannot be imported ({error}): pip install "
                "safetensors"
            ) from error
        read, reader = load_file, "safetensors"
    else:
        read = functools.partial(torch.load, map_location="cpu", weights_only=True)
        reader = "torch.load(weights_only=True)"
    try:
        return read(path)
    except Exception as error:  # they raise what the damage happens to lead to
        raise ValueError(f"{path}: no state dict that {reader} reads ({error})") from error


def _unwrapped(
    state: Mapping[Any, Any], own: Mapping[str, Any], head: str | None, path: Path
) -> dict[str, Any]:
    """Give the weights of a wrapped network its own names: of DDP, Lightning or `xmix train`, say.

    A wrapper puts one prefix before all names, but for torch.compile's, which may stand anywhere.
    The heads that `xmix train` puts on top go; the target's is the classifier, where there is one.
    """
    named = {str(key): value for key, value in state.items()}
    named = {k if k in own else k.replace("_orig_mod.", ""): v for k, v in named.items()}
    first = next(iter(own), "")
    found = {"", *(k.removesuffix(first) for k in named if k.endswith(f".{first}"))}
    prefix = max(sorted(found), key=lambda p: sum(p + key in named for key in own))
    unwrapped = {}
    for key, value in named.items():
        name = key.removeprefix(prefix)
        if name not in own:
            on_top = key.removeprefix(prefix.removesuffix("backbone."))
            if on_top.startswith(("source_head.", "joint_head.")):
                continue
            if on_top.startswith("target_head."):
                if head is None:
                    continue
                name = on_top.replace("target_head", head, 1)
        if name in unwrapped:
            raise ValueError(
                f"{path}: has two weights for {name!r}, {key!r} is one; save those of one network"
            )
        unwrapped[name] = value
    return unwrapped


def _resize_classifier(network: nn.Module, head: str, state: dict[str, Any]) -> None:
    """Give the network a classifier of as many classes as the weights have."""
    layer = network.get_submodule(head)
    assert isinstance(layer, nn.Linear)
    shape: tuple[int, ...] = tuple(getattr(state.get(f"{head}.weight"), "shape", ()))
    if len(shape) == 2 and shape[1] == layer.in_features and shape[0] != layer.out_features:
        parent, _, name = head.rpartition(".")
        made = nn.Linear(
            layer.in_features,
            shape[0],
            bias=layer.bias is not None,
            device=layer.weight.device,
        )
        setattr(network.get_submodule(parent), name, made)


def state_hash(network: nn.Module) -> str:
    """Compute the SHA-256 of a module's parameters and buffers, names included."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            array = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(array.numpy().data)
    return f"sha256:{digest.hexdigest()}"
