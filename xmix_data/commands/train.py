"""``xmix train``: fine-tuning by one of the methods."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from xmix_data.commands.answer import Answer
from xmix_data.commands.arguments import add_betons, add_fields, add_json, add_model
from xmix_data.outputs import local_path, refuse_inputs
from xmix_data.remote import path_or_url
from xmix_data.training.recipe import PRESETS, Recipe

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "fine-tune by one of the methods, with or without a source"
EXAMPLES = (
    "xmix train --method xmixup --target pets.beton --source imagenet.beton"
    " --pairing pairing.json --model resnet50 --test pets-test.beton --output run",
    "xmix train --method finetune --target pets.beton --model resnet50"
    " --test pets-test.beton --output plain --iterations 3000 --amp --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_json(parser)
    parser.add_argument(
        "--method",
        required=True,
        choices=(
            "finetune",
            "l2sp",
            "bss",
            "delta",
            "cotuning",
            "seqtrain",
            "cotrain",
            "mixup",
            "xmixup",
            "gradmix",
        ),
    )
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an option of the method, e.g. eta=0.01; may be given several times",
    )
    for option in ("--target", "--source", "--test", "--unlabelled"):
        add_betons(parser, option, "BETON", required=option == "--target")
    parser.add_argument("--pairing", type=path_or_url, metavar="PAIRING.json")
    add_model(parser)
    parser.add_argument(
        "--same-rows",
        action="store_true",
        help="the weights' classifier knows the source's classes, in the beton's order",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="metrics, checkpoint, result; a run that was interrupted goes on",
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="settings by name, in place of the defaults: those of XMixup's paper, word for word",
    )
    add_fields(parser, Recipe)
    parser.add_argument("--tensorboard", action="store_true", help="write for TensorBoard as well")
    parser.add_argument("--device", default=None, help="default: cuda where there is one")
    parser.add_argument("--workers", type=int, metavar="N", help="decoding threads")


def run(options: argparse.Namespace) -> Answer | None:
    """Train to the end, from the start or from where an earlier run was interrupted."""
    from xmix_data.backbones import load_backbone
    from xmix_data.loader import usable_device
    from xmix_data.methods import METHODS
    from xmix_data.ranks import default_device, job
    from xmix_data.training import fit, require_data

    folder = local_path(options.output)
    refuse_inputs(folder / "model.pt", [options.weights])
    method = _with_options(METHODS[options.method], options.set)
    names = [field.name for field in dataclasses.fields(Recipe)]
    given = {name: value for name, value in vars(options).items() if name in names}
    if given.keys() >= {"iterations", "epochs"}:
        raise ValueError(
            f"--iterations {given['iterations']} and --epochs {given['epochs']:g} both say how "
            "long the training is; give one of them"
        )
    if not method.mixes_domains:
        _refuse_lam(method, given)
    recipe = dataclasses.replace(PRESETS.get(options.preset, Recipe()), **given)
    require_data(method, options.source, options.pairing, options.unlabelled)
    with job() as (rank, local_rank):
        device = usable_device(options.device or default_device(local_rank))
        backbone = load_backbone(options.model, options.weights, recipe.crop)
        same_rows = options.same_rows
        result = fit(
            method,
            backbone,
            options.target,
            source=options.source,
            pairing=options.pairing,
            test=options.test,
            unlabelled=options.unlabelled,
            source_rows=_same_rows(backbone, options.source, recipe.crop) if same_rows else None,
            recipe=recipe,
            device=device,
            num_workers=options.workers,
            output=folder,
            progress=True,
            tensorboard=options.tensorboard,
        )
    if rank:
        return None
    came_out = (
        "no test set was given"
        if result.accuracy is None
        else f"top-1 accuracy {100 * result.accuracy:.2f} % on the test set"
    )
    document = json.loads((folder / "result.json").read_text())
    place = folder / "model.pt"
    return Answer(document, [f"trained by {method.name}: {came_out}; the network is in {place}"])


def _refuse_lam(method: Any, given: Mapping[str, Any]) -> None:
    """Refuse λ ~ Beta(alpha, beta) for a method that draws none by them, and may have its own."""
    for name in ("alpha", "beta"):
        if name in given:
            own = f"; {method.name} has an {name} of its own: --set {name}={given[name]:g}"
            raise ValueError(
                f"--{name} is of methods that mix target and source, and {method.name} does not; "
                f"leave it out{own if hasattr(method, name) else ''}"
            )


def _same_rows(backbone: Any, source: Sequence[Path | str] | None, crop: int) -> range:
    from xmix_data.beton import open_domain
    from xmix_data.methods import split_classifier

    if not source:
        raise ValueError("--same-rows is about the source's classes; give --source")
    classes = len(open_domain(source).class_names)
    _, classifier = split_classifier(backbone.network, backbone.side(crop))
    outputs = 0 if classifier is None else classifier.out_features
    if outputs != classes:
        raise ValueError(
            f"--same-rows: the classifier of {backbone.name} has {outputs} outputs, and the source "
            f"{classes} classes; give the source that it was trained on, or leave --same-rows out"
        )
    return range(classes)


def _with_options(method: Any, texts: Sequence[str]) -> Any:
    """Make a method with options of the command line: numbers, words, true, false or none."""
    types, kinds = {f.name: f.type for f in dataclasses.fields(method)}, get_type_hints(method)
    words = {"true": True, "false": False, "none": None}
    chosen: dict[str, Any] = {}
    for text in texts:
        name, found, value = text.partition("=")
        if not found or name not in types:
            raise ValueError(
                f"--set {text}: give NAME=VALUE; {method.name} has the options "
                f"{', '.join(types) or 'none'}"
            )
        given: Any = value
        with contextlib.suppress(ValueError, SyntaxError):  # what is no literal is a word
            given = words[value.lower()] if value.lower() in words else ast.literal_eval(value)
        fitting = get_args(kinds[name]) or (kinds[name],)
        if float in fitting and type(given) is int:
            given = float(given)
        if type(given) not in fitting:
            raise ValueError(f"--set {text}: the value is to be of type {types[name]}")
        chosen[name] = given
    return method(**chosen)
