"""Checkpoints: what a run saves, and what it must agree in with the run that takes it up.

Comes in: the state of a run, or a file. Goes out: the file, which appears when whole, or its state;
a checkpoint of another training is a `ValueError` that says in what they differ.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xmix_data.files import whole_file
from xmix_data.loader import ImageLoader, XMixLoader
from xmix_data.methods import Method
from xmix_data.normalise import IMAGENET_MEAN, IMAGENET_STD
from xmix_data.ranks import get_world_size
from xmix_data.training.recipe import Recipe

__all__ = [
    "FORMAT",
    "copied",
    "described",
    "hash_of",
    "identity_of",
    "load_checkpoint",
    "load_loaders",
    "load_network",
    "require_same_data",
    "save_checkpoint",
    "save_whole",
]

FORMAT = "xmix_data.checkpoint/1"
_MAY_CHANGE = ("log_every", "save_every", "test_every", "on_error")
"""Fields of a recipe that may differ when a run is resumed."""
_LATER = ("epochs", "nesterov", "unmixed", "clean_statistics", "label_smoothing", "compile_mode")
"""Fields that earlier checkpoints do not name; they mean the default there."""
_OTHER = {
    "target": "other target images or class names",
    "source": "other source images or class names",
    "unlabelled": "other unlabelled images",
    "architecture": "a network of other layers",
    "source_rows": "other rows for the source head (--same-rows)",
}
"""What a checkpoint holds a hash of, and what it means that another one is given."""
_UNKNOWN = ("mean", "std", *_OTHER)
"""What earlier checkpoints do not tell; they go on with what they are given."""
_REMEDY = "choose another --output, or delete it to begin anew"


def identity_of(
    method: Method,
    model: str,
    recipe: Recipe,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    hashes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what a checkpoint must agree in with the run that takes it up.

    Args:
        method: Method with its options.
        model: Name of the backbone and hash of its weights.
        recipe: Recipe of the run.
        mean, std: What the images are normalised with.
        hashes: Hashes of the images with their class names, and of what else the run begins from.
    """
    numbers = dataclasses.asdict(recipe)
    if not method.mixes_domains:  # nothing comes of these, which a shared recipe may have
        del numbers["alpha"], numbers["beta"]
    return {
        "method": described(method),
        "model": model,
        "mean": [float(x) for x in mean],
        "std": [float(x) for x in std],
        **(hashes or {}),
        "recipe": {key: value for key, value in numbers.items() if key not in _MAY_CHANGE},
    }


def hash_of(*parts: Any) -> str:
    """Compute the SHA-256 of what JSON holds, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts).encode(errors="surrogateescape")).hexdigest()


def described(thing: Method | nn.Module) -> str:
    """Describe a method with its options, or a network's layers; functions without addresses.

    Nor does it say where parameters are.
    """
    return re.sub(r" at 0x[0-9a-f]+| \(cuda(:\d+)?\)", "", repr(thing))


def save_checkpoint(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a checkpoint of tensors, numbers, texts, lists and dictionaries."""
    document = {"format": FORMAT, "identity": dict(identity), "world_size": get_world_size()}
    save_whole(path, {**document, **state})


def save_whole(path: Path, document: Mapping[str, Any]) -> None:
    """Write what `torch.load` reads; the file appears when it is whole.

    Raises:
        OSError: The file cannot be written; names it.
    """
    stream = io.BytesIO()  # torch's writer turns a full disk into an error that names nothing
    torch.save(dict(document), stream)
    with whole_file(path) as file:
        file.write(stream.getbuffer())


def load_checkpoint(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint that `save_checkpoint` wrote, onto the CPU.

    Another number of processes may go on from it: with the same batch size in each, or with one
    that leaves a step of all processes as many images as it had.

    Raises:
        ValueError: The checkpoint is damaged, or of another training.
    """
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if saved["format"] != FORMAT:
            raise ValueError(saved["format"])
        defaults = dataclasses.asdict(Recipe())
        later = {key: defaults[key] for key in _LATER}
        theirs = {**saved["identity"], **later, **saved["identity"]["recipe"]}
    except Exception as error:  # torch.load raises what the damage happens to lead to
        raise ValueError(
            f"{path}: damaged, or no checkpoint of this version ({type(error).__name__}); {_REMEDY}"
        ) from error
    numbers = identity["recipe"]
    for key, value in {**identity, **numbers}.items():
        if key == "recipe" or theirs.get(key) == value:
            continue
        if key in _UNKNOWN and key not in theirs:
            continue
        if key in _OTHER:
            raise ValueError(
                f"{path}: is of a run with {_OTHER[key]}; give those of before, or {_REMEDY}"
            )
        if key == "batch_size" and saved.get("world_size", get_world_size()) != get_world_size():
            # More or fewer processes may share the same steps.
            step = theirs[key] * saved["world_size"]
            if step == value * get_world_size():
                continue
            raise ValueError(
                f"{path}: is of steps of {step} images, {saved['world_size']} processes with "
                f"batch_size {theirs[key]}, and here {get_world_size()} have batch_size {value}; "
                f"give a batch_size of {step / get_world_size():g} to keep the steps, or keep the "
                f"batch_size of {theirs[key]}; or {_REMEDY}"
            )
        raise ValueError(
            f"{path}: is of a run with {key} {theirs.get(key)}, and this one has {value}; {_REMEDY}"
        )
    return saved


def require_same_data(path: Path, saved: Mapping[str, Any], data: Sequence[str]) -> None:
    """Check that the phases before a checkpoint's had the data that they would have now.

    Args:
        path: The checkpoint.
        saved: What it holds; an earlier version's does not tell.
        data: What names the samples of each phase, as its loader's state has it.

    Raises:
        ValueError: An earlier phase learnt from other data.
    """
    number = saved["phase"]
    if saved.get("data", data)[:number] != data[:number]:
        raise ValueError(
            f"{path}: an earlier phase learnt from other data or by another pairing; give those, "
            f"or {_REMEDY}"
        )


def load_loaders(
    path: Path, loaders: Sequence[ImageLoader | XMixLoader], states: Sequence[dict[str, Any]]
) -> None:
    """Put loaders where they were when the checkpoint ``path`` was saved.

    Raises:
        ValueError: The loaders load other data.
    """
    if len(states) != len(loaders):
        raise ValueError(f"{path}: was made with other --unlabelled images; {_REMEDY}")
    for loader, state in zip(loaders, states, strict=True):
        try:
            loader.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; or {_REMEDY}") from error


def load_network(path: Path, network: nn.Module, state: dict[str, Any]) -> None:
    """Give a network the weights that the checkpoint ``path`` holds.

    Raises:
        ValueError: The weights are of other shapes.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: the checkpoint has heads for other classes ({error}); give the same betons, "
            "or choose another --output"
        ) from error


def copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a state dict, so that its tensors, and a module's extra state, stay as they are."""
    return {
        key: value.detach().clone() if isinstance(value, torch.Tensor) else deepcopy(value)
        for key, value in state.items()
    }
