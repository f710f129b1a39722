"""The reference trainer: a method, its batches, and SGD by the paper's schedule.

Comes in: a method, a backbone, betons and a pairing. Goes out: a trained network and its accuracy;
in a folder ``metrics.jsonl``, ``checkpoint.pt``, ``model.pt`` and ``result.json``. An interrupted
run goes on where it was, on the CPU to the same weights, bit for bit. Under torch.distributed the
processes share the work.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from xmix_data.augment import CenterCrop, RandomCrop
from xmix_data.backbones import Backbone, as_backbone
from xmix_data.beton import BetonLike, Domain, open_domain
from xmix_data.errors import MissingDependencyError, XMixError
from xmix_data.files import whole_file
from xmix_data.loader import ImageLoader, XMixLoader
from xmix_data.methods import (
    Method,
    Phase,
    TransferNetwork,
    source_head,
    split_classifier,
)
from xmix_data.pairing import Pairing
from xmix_data.plan import PlanRows
from xmix_data.progress import Progress

__all__ = ["Recipe", "Result", "evaluate", "fit"]

_log = logging.getLogger("xmix_data")

Betons = BetonLike | Sequence[BetonLike]
_FORMAT = "xmix_data.checkpoint/1"
_NAMED = 4
"""How many samples of a batch with a loss that is not finite are named."""
_MAY_CHANGE = ("log_every", "save_every", "test_every", "on_error")
"""What a recipe may have otherwise when a run is resumed."""


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's (XMixup, section 4.1; weight decay is ours).

    Raises:
        ValueError: A number is impossible.
    """

    iterations: int = 9000
    batch_size: int = 48
    """In each process."""
    learning_rate: float = 0.01
    """The paper takes 0.001 for Stanford Dogs."""
    drop_at: float = 2 / 3
    """Share of the iterations after which the learning rate is divided by 10."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    crop: int = 224
    """Side in pixels of random crops in training and centre crops in tests."""
    flip: bool = True
    alpha: float = 1.0
    beta: float = 1.0
    """λ ~ Beta(alpha, beta), for the methods that mix two domains."""
    amp: bool = False
    """Forward passes in bfloat16."""
    compile: bool = False
    on_error: str = "raise"
    """``"replace"`` trains on in spite of some damaged images, see `XMixLoader`; a test never."""
    seed: int = 0
    log_every: int = 50
    """Iterations from one line of metrics to the next; the loss is looked at as often."""
    save_every: int = 500
    """Iterations from one checkpoint to the next."""
    test_every: int | None = None
    """Iterations from one test to the next; default only at the end."""

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "crop", "log_every", "save_every", "test_every"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
        for name in ("learning_rate", "alpha", "beta"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be a number above 0")
        decays = 0 <= self.weight_decay < math.inf
        if not 0 <= self.drop_at <= 1 or not 0 <= self.momentum < 1 or not decays:
            raise ValueError(
                f"drop_at {self.drop_at}, momentum {self.momentum}, weight_decay "
                f"{self.weight_decay}: give 0 .. 1, 0 .. 1, and at least 0"
            )

    def rate(self, step: int, iterations: int) -> float:
        """The learning rate of a step of a phase."""
        return self.learning_rate * (0.1 if step >= round(self.drop_at * iterations) else 1.0)


@dataclass(frozen=True)
class Result:
    """What came of a training."""

    network: TransferNetwork
    accuracy: float | None
    """Top-1 on the test set in 0 .. 1, after the last iteration; ``None`` without a test set."""


def fit(
    method: Method,
    backbone: str | nn.Module | Backbone,
    target: Betons,
    *,
    source: Betons | None = None,
    pairing: Pairing | str | Path | None = None,
    test: Betons | None = None,
    unlabelled: Betons | None = None,
    source_rows: Sequence[int] | None = None,
    recipe: Recipe | None = None,
    device: str | torch.device = "cpu",
    num_workers: int | None = None,
    output: str | Path | None = None,
    progress: bool = False,
    tensorboard: bool = False,
) -> Result:
    """Train a method to its end, or from where an earlier run in ``output`` was interrupted.

    Args:
        method: Any of `xmix_data.methods`; it says what batches it needs.
        backbone: Name of a torchvision classifier (of timm: ``"timm:NAME"``), taken with its
            default weights; a `Backbone`; or a module that ends in a linear classifier. It is
            copied.
        target: The target's training set.
        source, pairing: The auxiliary domain, for the methods that have one.
        test: The target's test set; its classes are found by name.
        unlabelled: Target images whose labels are not looked at, for GradMix.
        source_rows: For each source class the pre-trained classifier's row that its head starts
            from; default by WordNet id, see `xmix_data.methods.source_head`.
        recipe: The numbers.
        device: Where to train.
        num_workers: Decoding threads of each loader.
        output: Folder for metrics, checkpoints and the result, which all processes see; ``None``
            keeps none.
        progress: Show progress on stderr.
        tensorboard: Write the metrics for TensorBoard as well, into ``output``.

    Raises:
        ValueError: Something is missing or does not fit together; says what.
        BetonError: A beton is damaged.
        OSError: ``output`` cannot be written.
        XMixError: The loss is not finite.
    """
    with ExitStack() as stack:
        run = _Run(
            method,
            as_backbone(backbone),
            target,
            source,
            pairing,
            test,
            unlabelled,
            source_rows,
            recipe or Recipe(),
            device,
            num_workers,
            output,
            progress,
            tensorboard,
            stack,
        )
        network = None
        for number, phase in enumerate(method.phases):
            network = run.train(number, phase, network)
        assert network is not None
        return run.finish(network)


class _Run:
    """One training: what was given, opened and checked."""

    def __init__(
        self,
        method: Method,
        backbone: Backbone,
        target: Betons,
        source: Betons | None,
        pairing: Pairing | str | Path | None,
        test: Betons | None,
        unlabelled: Betons | None,
        source_rows: Sequence[int] | None,
        recipe: Recipe,
        device: str | torch.device,
        num_workers: int | None,
        output: str | Path | None,
        progress: bool,
        tensorboard: bool,
        stack: ExitStack,
    ) -> None:
        self.method, self.backbone, self.recipe = method, backbone, recipe
        self.weights_hash = backbone.weights_hash
        self.target = open_domain(target)
        self.source, self.test, self.unlabelled = (
            None if given is None else open_domain(given) for given in (source, test, unlabelled)
        )
        self.pairing, self.source_rows, self.progress = pairing, source_rows, progress
        needs_source = any(
            phase.batches != "target" or phase.heads != ("target",) for phase in method.phases
        )
        if needs_source and (self.source is None or pairing is None):
            raise ValueError(
                f"{method.name} trains on source images too; give a source and a pairing "
                "(--source, --pairing)"
            )
        if unlabelled is not None and not method.unlabelled:
            raise ValueError(f"{method.name} has no use for unlabelled images; leave them out")
        if backbone.one_size and recipe.crop != backbone.size:
            raise ValueError(
                f"{backbone.name} takes images of {backbone.size} pixels and no others, and crop "
                f"is {recipe.crop}; give it crop={backbone.size}"
            )
        self.common: dict[str, Any] = {
            "batch_size": recipe.batch_size,
            "device": device,
            "num_workers": num_workers,
            "mean": backbone.mean,
            "std": backbone.std,
        }
        # All of them now: what does not fit is said before hours of training, not after.
        self.loaders = [
            [stack.enter_context(loader) for loader in self._loaders(phase)]
            for phase in method.phases
        ]
        self.device = self.loaders[0][0].device
        self.tests = self.test_ids = None
        if self.test is not None:
            self.test_ids = _test_ids(self.test, self.target)
            crop = CenterCrop(recipe.crop)
            self.tests = ImageLoader(self.test.betons, crop=crop, **self.common)
            stack.enter_context(self.tests)
        self.body, self.classifier = split_classifier(backbone.network)
        self.features = self._features()
        self.log = _Log(None if output is None else Path(output), tensorboard)
        stack.callback(self.log.close)
        self.saved = self._saved()

    def train(self, number: int, phase: Phase, earlier: TransferNetwork | None) -> TransferNetwork:
        """The training loop, for one phase of the method."""
        recipe, method, loaders, saved = self.recipe, self.method, self.loaders[number], self.saved
        iterations = phase.iterations or recipe.iterations
        network = self._network(number, phase, earlier)
        if saved is not None and saved["phase"] > number:
            return network  # what it had learnt is where the next phase starts
        resumes = saved is not None and saved["phase"] == number
        if saved is not None and resumes and saved["start"] is not None:
            self._load(network, saved["start"])
        start = _copied(network.state_dict()) if number else None
        method.prepare(network, phase)
        decay = recipe.weight_decay if method.weight_decay is None else method.weight_decay
        optimizer = torch.optim.SGD(
            [p for p in network.parameters() if p.requires_grad],
            recipe.learning_rate,
            recipe.momentum,
            weight_decay=decay,
        )
        first = self._restore(network, optimizer) if resumes else 0
        wrapped = self._wrapped(network)
        average = _average if _world_size() > 1 else None
        batches = [_endless(loader) for loader in loaders]
        unchecked: list[tuple[int, torch.Tensor, PlanRows | None]] = []
        network.train()
        with self._bar(number, first, iterations) as bar:
            for step in range(first, iterations):
                batch, *more = (next(endless) for endless in batches)
                # What is random in a network, dropout say, is the same after a resume.
                torch.manual_seed(_seed(recipe.seed, number, step + 1, _rank()))
                optimizer.zero_grad()
                with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.amp):
                    made = method.backward(
                        wrapped,
                        batch,
                        step=step,
                        average=average,
                        unlabelled=more[0][0] if more else None,
                    )
                rate = recipe.rate(step, iterations) * made.lr_scale
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                _share_buffers(network)
                done, last = step + 1, step + 1 == iterations
                logs, saves = (
                    last or done % every == 0 for every in (recipe.log_every, recipe.save_every)
                )
                unchecked.append((done, made.loss, loaders[0].last_rows))
                if logs or saves or self.device.type == "cpu":  # looking makes a GPU wait
                    self._require_finite(unchecked, loaders[0], network if saves else None)
                bar.advance()
                if logs:
                    means = self._means({"loss": float(made.loss), **made.values})
                    self.log.write(number, done, loss=means.pop("loss"), lr=rate, **means)
                if recipe.test_every and done % recipe.test_every == 0 and not last:
                    self._test(number, done, network)
                if saves:
                    self._save(number, done, network, start, optimizer)
        for loader in loaders:
            loader.close()
        return network

    def finish(self, network: TransferNetwork) -> Result:
        """Test, and write the result."""
        number = len(self.method.phases) - 1
        iterations = self.method.phases[-1].iterations or self.recipe.iterations
        accuracy = self._test(number, iterations, network)
        if self.log.folder is not None and _rank() == 0:
            with whole_file(self.log.folder / "model.pt") as stream:
                classes = None if self.source is None else self.source.class_names
                torch.save(
                    {
                        "format": _FORMAT,
                        "model": self.backbone.name,
                        "network": network.state_dict(),
                        "heads": list(network.heads),
                        "target_classes": self.target.class_names,
                        "source_classes": classes,
                    },
                    stream,
                )
            recipe = dataclasses.asdict(self.recipe)
            document = {
                "method": _described(self.method),
                "model": self.backbone.name,
                "recipe": recipe,
                "accuracy": accuracy,
            }
            with whole_file(self.log.folder / "result.json") as stream:
                stream.write((json.dumps(document, indent=1) + "\n").encode())
        return Result(network, accuracy)

    def _network(
        self, number: int, phase: Phase, earlier: TransferNetwork | None
    ) -> TransferNetwork:
        """The heads of a phase on the backbone as it is; its new heads are always the same."""
        torch.manual_seed(_seed(self.recipe.seed, number, 0, 0))
        target = source = None
        if "target" in phase.heads or "joint" in phase.heads:
            target = nn.Linear(self.features, len(self.target.class_names))
        if self.source is not None and ("source" in phase.heads or "joint" in phase.heads):
            source = source_head(
                self.classifier, self.features, self.source.class_names, self.source_rows
            )
        body = self.body if earlier is None else earlier.backbone
        network = TransferNetwork(body, target, source, joint="joint" in phase.heads)
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def _features(self) -> int:
        if self.classifier is not None:
            return self.classifier.in_features
        with torch.no_grad():  # the model ended in its features; one image tells how many
            side = self.backbone.size if self.backbone.one_size else self.recipe.crop
            body = self.body.to(self.device).eval()
            return int(body(torch.zeros(1, 3, side, side, device=self.device)).shape[1])

    def _loaders(self, phase: Phase) -> list[ImageLoader | XMixLoader]:
        """Of the phase's batches and, where the method wants them, of unlabelled images."""
        recipe = self.recipe
        common = {
            **self.common,
            "crop": RandomCrop(recipe.crop),
            "flip": recipe.flip,
            "seed": recipe.seed,
            "drop_last": True,
            "on_error": recipe.on_error,
        }
        kind = phase.batches
        loaders: list[ImageLoader | XMixLoader] = []
        if kind == "target":
            loaders.append(ImageLoader(self.target.betons, shuffle=True, **common))
        else:
            assert self.source is not None and self.pairing is not None
            if kind == "auxiliary":
                loaders.append(
                    ImageLoader(self.source.betons, shuffle=True, pairing=self.pairing, **common)
                )
            else:
                loaders.append(
                    XMixLoader(
                        self.target.betons,
                        self.source.betons,
                        self.pairing,
                        mix=kind == "mixed",
                        alpha=recipe.alpha,
                        beta=recipe.beta,
                        **common,
                    )
                )
        if self.unlabelled is not None:
            loaders.append(ImageLoader(self.unlabelled.betons, shuffle=True, **common))
        return loaders

    def _wrapped(self, network: TransferNetwork) -> nn.Module:
        wrapped: nn.Module = network
        if _world_size() > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            wrapped = DistributedDataParallel(wrapped, device_ids=ids)
            wrapped.broadcast_buffers = False  # they are shared whether a method uses DDP or not
        if self.recipe.compile:
            wrapped = torch.compile(wrapped)  # type: ignore[assignment]
        return wrapped

    def _bar(self, number: int, first: int, iterations: int) -> Progress:
        phases = len(self.method.phases)
        label = self.method.name + (f", phase {number + 1} of {phases}" if phases > 1 else "")
        enabled = self.progress and _rank() == 0
        return Progress(label, iterations, unit="iterations", done=first, enabled=enabled)

    def _require_finite(
        self,
        unchecked: list[tuple[int, torch.Tensor, PlanRows | None]],
        loader: ImageLoader | XMixLoader,
        network: nn.Module | None,
    ) -> None:
        """Raises if a loss since the last look, or a weight, is not finite; forgets the losses."""
        looks = [torch.isfinite(loss) for _, loss, _ in unchecked]
        if network is not None:
            looks.append(torch.stack([p.isfinite().all() for p in network.parameters()]).all())
        own = torch.stack(looks).float()
        everywhere = own.clone()
        if _world_size() > 1:  # no process goes on, or saves, after the error of another
            distributed.all_reduce(everywhere, distributed.ReduceOp.MIN)
        if not everywhere.all():
            which = everywhere.tolist().index(0)
            step, loss, rows = unchecked[min(which, len(unchecked) - 1)]
            if own[which]:
                raise XMixError(
                    f"{self.method.name}: the loss of another process is not finite in step "
                    f"{step}; see what it says"
                )
            found = f"the loss is {loss}" if which < len(unchecked) else "a weight is not finite"
            names = [] if rows is None else loader.describe(rows)
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            raise XMixError(
                f"{self.method.name}: {found} in step {step}, from "
                f"{'; '.join(names[:_NAMED])}{more}; lower the learning rate, or look at these "
                "images. The checkpoint, if there is one, holds what was before"
            )
        unchecked.clear()

    def _means(self, values: dict[str, float]) -> dict[str, float]:
        """Over all processes."""
        means = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        if _world_size() > 1:
            _average([means])
        return dict(zip(values, means.tolist(), strict=True))

    def _test(self, number: int, step: int, network: TransferNetwork) -> float | None:
        if self.tests is None or network.heads == ("source",):
            return None
        accuracy = evaluate(network, self.tests, self.test_ids)
        self.log.write(number, step, accuracy=accuracy)
        return accuracy

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree in with the run that takes it up."""
        recipe = dataclasses.asdict(self.recipe)
        return {
            "method": _described(self.method),
            "model": f"{self.backbone.name} {self.weights_hash}",
            "recipe": {key: value for key, value in recipe.items() if key not in _MAY_CHANGE},
        }

    def _save(
        self,
        number: int,
        step: int,
        network: TransferNetwork,
        start: dict[str, Any] | None,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        if self.log.folder is None or _rank() > 0:
            return
        with whole_file(self.log.folder / "checkpoint.pt") as stream:
            torch.save(
                {
                    "format": _FORMAT,
                    "identity": self._identity(),
                    "phase": number,
                    "step": step,
                    "start": start,
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "method": self.method.state_dict(),
                    "loaders": [loader.state_dict() for loader in self.loaders[number]],
                },
                stream,
            )

    def _saved(self) -> dict[str, Any] | None:
        """The checkpoint of an earlier run, which must be one of this training."""
        if self.log.folder is None:
            return None
        path = self.log.folder / "checkpoint.pt"
        if not path.exists():
            self.log.cut(0, 0)
            return None
        remedy = "choose another --output, or delete it to begin anew"
        try:
            saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if saved["format"] != _FORMAT:
                raise ValueError(saved["format"])
            theirs = {**saved["identity"], **saved["identity"]["recipe"]}
        except Exception as error:  # torch.load raises what the damage happens to lead to
            raise ValueError(
                f"{path}: damaged, or no checkpoint of this version ({type(error).__name__}); "
                f"{remedy}"
            ) from error
        own = self._identity()
        numbers = own.pop("recipe")
        for key, value in {**own, **numbers}.items():
            if theirs.get(key) != value:
                raise ValueError(
                    f"{path}: is of another {key}: {theirs.get(key)}, and this is {value}; {remedy}"
                )
        number, phases = saved["phase"], self.method.phases
        if len(saved["loaders"]) != len(self.loaders[number]):
            raise ValueError(f"{path}: was made with other --unlabelled images; {remedy}")
        for loader, state in zip(self.loaders[number], saved["loaders"], strict=True):
            try:
                loader.load_state_dict(state)
            except ValueError as error:
                raise ValueError(f"{path}: {error}; or {remedy}") from error
        ended = number + 1 == len(phases) and saved["step"] == (
            phases[-1].iterations or self.recipe.iterations
        )
        self.log.cut(number, saved["step"], test_again=ended)
        return saved

    def _restore(self, network: TransferNetwork, optimizer: torch.optim.Optimizer) -> int:
        """Take up the checkpoint; returns the steps that are done."""
        saved = self.saved
        assert saved is not None
        self._load(network, saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        self.method.load_state_dict(saved["method"])
        _log.info("goes on after iteration %d", saved["step"])
        return int(saved["step"])

    def _load(self, network: TransferNetwork, state: dict[str, Any]) -> None:
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"{self.log.folder}: the checkpoint has heads for other classes ({error}); give "
                "the same betons, or choose another --output"
            ) from error


class _Log:
    """Metrics as JSON lines, and for TensorBoard; only the first process writes."""

    def __init__(self, folder: Path | None, tensorboard: bool) -> None:
        self.folder, self._board = folder, None
        if folder is None:
            if tensorboard:
                raise ValueError("tensorboard writes into output; give one")
            return
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder}: is a file; give the name of a folder")
        folder.mkdir(parents=True, exist_ok=True)
        if _rank() == 0:
            with (folder / "metrics.jsonl").open("a"):  # can it be written?
                pass
            if tensorboard:
                self._board = _summary_writer(folder)

    def write(self, phase: int, step: int, **values: float) -> None:
        if self.folder is None or _rank() > 0:
            return
        line = {"phase": phase, "step": step, **values}
        with (self.folder / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"phase {phase}/{name}", value, step)

    def cut(self, phase: int, step: int, *, test_again: bool = False) -> None:
        """Forget what was logged after a checkpoint: it will be logged again."""
        assert self.folder is not None
        if _rank() > 0:
            return
        path, here = self.folder / "metrics.jsonl", (phase, step)
        kept = []
        for text in path.read_text().splitlines(keepends=True):
            if not text.endswith("\n"):
                break  # a process that was killed wrote half a line
            line = json.loads(text)
            at = (line["phase"], line["step"])
            if at < here or (at == here and not (test_again and "accuracy" in line)):
                kept.append(text)
        with whole_file(path) as stream:
            stream.write("".join(kept).encode())

    def close(self) -> None:
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


@torch.no_grad()
def evaluate(network: nn.Module, loader: ImageLoader, ids: torch.Tensor | None = None) -> float:
    """Top-1 accuracy by the target logits, over all processes of the job.

    Args:
        network: Images -> `Outputs`; put into evaluation mode meanwhile.
        loader: Clean images and labels; one pass is taken.
        ids: (C,) int64: the target class of each class of the loader; default the same.

    Returns:
        In 0 .. 1.
    """
    training = network.training
    network.eval()
    counts = torch.zeros(2, dtype=torch.float64, device=loader.device)
    for images, labels in loader:
        own = len(images) - loader.last_padding
        if ids is not None:
            labels = ids.to(labels.device)[labels]
        right = network(images).target_logits.argmax(1) == labels
        counts[0] += right[:own].sum()
        counts[1] += own
    network.train(training)
    if _world_size() > 1:
        distributed.all_reduce(counts)
    return float(counts[0] / counts[1])


def _test_ids(test: Domain, target: Domain) -> torch.Tensor:
    id_of = {name: label for label, name in enumerate(target.class_names)}
    present = set(target.labels.tolist())
    for label in sorted(set(test.labels.tolist())):
        name = test.class_names[label]
        if target.class_names.count(name) > 1:
            raise ValueError(
                f"test class {name!r} ({test.betons[0].path}) is in several target betons; "
                "convert them with different class names"
            )
        if id_of.get(name) not in present:
            raise ValueError(
                f"test class {name!r} ({test.betons[0].path}) has no training image in the "
                "target; give the test set of the same classes"
            )
    return torch.tensor([id_of.get(name, -1) for name in test.class_names])


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _described(method: Method) -> str:
    """Its options; a function among them by name, for its address is another in each process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(method))


def _seed(*parts: int) -> int:
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.detach().clone() for key, value in state.items()}


def _rank() -> int:
    return distributed.get_rank() if _in_a_job() else 0


def _world_size() -> int:
    return distributed.get_world_size() if _in_a_job() else 1


def _in_a_job() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _average(tensors: list[torch.Tensor]) -> None:
    """Replace tensors, in place, by their means over all processes."""

    def average(flat: torch.Tensor) -> None:
        distributed.all_reduce(flat)
        flat /= _world_size()

    _in_one_message(tensors, average)


def _share_buffers(network: nn.Module) -> None:
    """Give all processes the first one's buffers: averages of batch normalisation, for one."""
    if _world_size() > 1:
        _in_one_message(list(network.buffers()), lambda flat: distributed.broadcast(flat, 0))


def _in_one_message(tensors: list[torch.Tensor], send: Callable[[torch.Tensor], Any]) -> None:
    """Change tensors in place, those of a type together: a message costs more than its bytes."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        send(flat)
        for tensor, part in zip(alike, torch.split(flat, [t.numel() for t in alike]), strict=True):
            tensor.copy_(part.view_as(tensor))
