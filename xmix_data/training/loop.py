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
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn

from xmix_data.backbones import Backbone, as_backbone, main_output
from xmix_data.beton import Domain, DomainLike, open_domain
from xmix_data.errors import PreemptedError, XMixError
from xmix_data.files import alone_in, whole_file
from xmix_data.loader import ImageLoader
from xmix_data.methods import Method, Phase, TransferNetwork, source_head, split_classifier
from xmix_data.outputs import local_path
from xmix_data.pairing import Pairing, open_pairing
from xmix_data.plan import CenterCrop, RandomCrop
from xmix_data.progress import Progress
from xmix_data.ranks import (
    average_in_place,
    from_first_process,
    get_rank,
    get_world_size,
    named_loss_of_a_process,
    require_group,
    share_buffers,
)
from xmix_data.training.checkpoint import (
    FORMAT,
    copied,
    described,
    hash_of,
    identity_of,
    load_checkpoint,
    load_loaders,
    load_network,
    require_same_data,
    save_checkpoint,
    save_whole,
)
from xmix_data.training.evaluation import evaluate, require_trained
from xmix_data.training.feeds import (
    needs_source,
    phase_loaders,
    require_data,
    without_end,
)
from xmix_data.training.metrics import (
    MetricsLog,
    StepLoss,
    finite_names,
    means_over_ranks,
    named,
    require_finite,
)
from xmix_data.training.preemption import Preemption
from xmix_data.training.recipe import Recipe, Result, advice_on_mixing

__all__ = ["fit"]


_log = logging.getLogger("xmix_data")


def fit(
    method: Method,
    backbone: str | nn.Module | Backbone,
    target: DomainLike,
    *,
    source: DomainLike | None = None,
    pairing: Pairing | str | Path | None = None,
    test: DomainLike | None = None,
    unlabelled: DomainLike | None = None,
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
        recipe: Numbers of the training; default those of the paper.
        device: Device to train on.
        num_workers: Number of decoding threads of each loader.
        output: Folder for metrics, checkpoints and the result, which all processes see; ``None``
            keeps none.
        progress: Show progress on stderr.
        tensorboard: Write the metrics for TensorBoard as well, into ``output``.

    Returns:
        The trained network, and its accuracy on the test set.

    Raises:
        ValueError: Something is missing or does not fit together, or ``output`` is a URL; says
            what.
        BetonError: A beton is damaged.
        OSError: ``output`` cannot be written, or another training writes to it.
        PreemptedError: SIGTERM came, to any of the processes, and there is an ``output``: all
            ended after the same step, with a checkpoint.
        XMixError: The loss is not finite, or another process of the job has ended or has other
            images.

    Examples:
        >>> pool = torch.nn.AdaptiveAvgPool2d(2)  # stands for a pre-trained model, e.g. "resnet50"
        >>> model = torch.nn.Sequential(pool, torch.nn.Flatten(), torch.nn.Linear(12, 10))
        >>> recipe = Recipe(iterations=2, batch_size=8, crop=32)
        >>> result = fit(
        ...     XMixup(), model, "target.beton", source="source.beton", pairing="pairing.json",
        ...     test="target.beton", recipe=recipe,
        ... )
        >>> result.network.heads, 0 <= result.accuracy <= 1
        (('target', 'source'), True)
    """
    if not isinstance(method, Method):
        raise ValueError(
            f"method is {method!r}; give an object of a class of xmix_data.methods, e.g. XMixup()"
        )
    if not isinstance(recipe, Recipe | None):
        raise ValueError(f"recipe is {recipe!r}; give Recipe(iterations=..., batch_size=...)")
    folder = None if output is None else local_path(output)
    require_data(method, source, pairing, unlabelled)
    lost = named_loss_of_a_process("is in the checkpoint, if there is one")
    # A caller may have gradients off, in a notebook's cell for all of its code, say.
    with ExitStack() as stack, lost, torch.inference_mode(False):
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
            folder,
            progress,
            tensorboard,
            stack,
        )
        # Seeds are for this training: the caller's random numbers go on as they would have.
        on_gpu = run.device.type == "cuda"
        stack.enter_context(torch.random.fork_rng([run.device] if on_gpu else []))
        network = None
        for number, phase in enumerate(run.method.phases):
            network = run.train(number, phase, network)
        assert network is not None
        return run.finish(network)


class _Run:
    """One training: what was given, opened and checked."""

    def __init__(
        self,
        method: Method,
        backbone: Backbone,
        target: DomainLike,
        source: DomainLike | None,
        pairing: Pairing | str | Path | None,
        test: DomainLike | None,
        unlabelled: DomainLike | None,
        source_rows: Sequence[int] | None,
        recipe: Recipe,
        device: str | torch.device,
        num_workers: int | None,
        output: Path | None,
        progress: bool,
        tensorboard: bool,
        stack: ExitStack,
    ) -> None:
        self.method, self.backbone, self.recipe = copy(method), backbone, recipe
        self.method.label_smoothing = recipe.label_smoothing  # of a copy: the other is the caller's
        self.target = open_domain(target)
        self.source, self.test, self.unlabelled = (
            None if given is None else open_domain(given) for given in (source, test, unlabelled)
        )
        self.source_rows, self.progress = source_rows, progress
        paired = None
        if needs_source(method) and pairing is not None:
            paired = open_pairing(pairing)
        if backbone.one_size and recipe.crop != backbone.size:
            raise ValueError(
                f"{backbone.name} takes images of {backbone.size} pixels and no others, and crop "
                f"is {recipe.crop}; give it crop={backbone.size}"
            )
        if recipe.unmixed and not method.mixes:
            raise ValueError(
                f"unmixed is about methods that mix images, and {method.name} mixes none; leave it "
                "at 0"
            )
        if not method.mixes_domains:
            _warn_of_lam(method, recipe)
        common: dict[str, Any] = {
            "batch_size": recipe.batch_size,
            "device": device,
            "num_workers": num_workers,
            "mean": backbone.mean,
            "std": backbone.std,
            "dtype": torch.bfloat16 if recipe.amp else torch.float32,
        }
        self.common = common
        # All of them now: what does not fit is said before hours of training, not after.
        self.loaders = [
            [
                stack.enter_context(loader)
                for loader in phase_loaders(
                    phase, recipe, self.target, self.source, paired, self.unlabelled, **common
                )
            ]
            for phase in method.phases
        ]
        self.device = self.loaders[0][0].device
        require_group(self.loaders[0][0].world_size)
        self.tests = None
        if self.test is not None:
            require_trained(self.test, self.target)
            _warn_of_seen_images(self.test, self.target)
            crop = CenterCrop(recipe.crop)
            self.tests = ImageLoader(self.test, crop=crop, classes_from=self.target, **common)
            stack.enter_context(self.tests)
        self.body, self.classifier = split_classifier(backbone.network, backbone.side(recipe.crop))
        if self.classifier is not None:  # new heads are made, and drawn, on the CPU
            self.classifier.cpu()
        self.features = self._features()
        model = f"{backbone.name} {backbone.weights_hash}"
        hashes = self._hashes()
        if get_world_size() > 1:
            self._require_the_same_images(hashes)
        self.identity = identity_of(method, model, recipe, backbone.mean, backbone.std, hashes)
        self.path = None if output is None else output / "checkpoint.pt"
        self.saved: dict[str, Any] | None = None
        alone = nullcontext() if output is None or get_rank() > 0 else alone_in(output)
        is_there = output is not None and output.is_dir()
        if is_there:  # before its checkpoint is read
            stack.enter_context(alone)
        if self.path is not None and self.path.exists():
            self.saved = load_checkpoint(self.path, self.identity)
        self.lengths, self.unmixed_from = self._lengths()
        advice = advice_on_mixing(recipe, self._passes())
        if method.mixes and advice and get_rank() == 0:
            _log.warning("%s", advice)
        self.log = MetricsLog(output, tensorboard)
        stack.callback(self.log.close)
        if not is_there:
            stack.enter_context(alone)
        self._go_on()
        self.preemption = Preemption(enabled=self.path is not None)

    def _hashes(self) -> dict[str, str]:
        """Return hashes of the images and their classes, and of what else the training begins from.

        Those of images and classes come under the names of the domains that the method learns from.
        """
        paired = needs_source(self.method)
        domains = {
            "target": self.target,
            "source": self.source if paired else None,
            "unlabelled": self.unlabelled,
        }
        hashes = {
            name: hash_of([beton.fingerprint for beton in domain.betons], domain.class_names)
            for name, domain in domains.items()
            if domain is not None
        }
        rows = self.source_rows if paired else None
        hashes["architecture"] = hash_of(described(self.backbone.network))
        hashes["source_rows"] = hash_of(None if rows is None else [int(row) for row in rows])
        return hashes

    def _require_the_same_images(self, hashes: dict[str, str]) -> None:
        """Check that all processes learn from the images and pairs of the first.

        Raises:
            XMixError: This one does not.
        """
        domains = {"target", "source", "unlabelled"}
        given = {name: value for name, value in hashes.items() if name in domains}
        given["paired"] = hash_of(self._data())
        for name, content in from_first_process(given).items():
            if given.get(name) != content:
                raise XMixError(
                    f"rank {get_rank()} has other {name} images or class names than rank 0; give "
                    "all processes the same betons, and the same pairing"
                )

    def train(self, number: int, phase: Phase, earlier: TransferNetwork | None) -> TransferNetwork:
        """Train the network for one phase of the method."""
        recipe, method, loaders, saved = self.recipe, self.method, self.loaders[number], self.saved
        iterations, unmixed_from = self.lengths[number], self.unmixed_from[number]
        network = self._network(number, phase, earlier)
        if saved is not None and saved["phase"] > number:
            return network  # what it had learnt is where the next phase starts
        resumes = saved is not None and saved["phase"] == number
        if saved is not None and resumes and saved["start"] is not None:
            self._load(network, saved["start"])
        start = copied(network.state_dict()) if number else None
        finite = finite_names(network)
        method.prepare(network, phase)
        if method.surveys:
            self._survey(network)
        decay = recipe.weight_decay if method.weight_decay is None else method.weight_decay
        optimizer = torch.optim.SGD(
            [p for p in network.parameters() if p.requires_grad],
            recipe.learning_rate,
            recipe.momentum,
            weight_decay=decay,
            nesterov=recipe.nesterov,
        )
        first = self._restore(network, optimizer) if resumes else 0
        wrapped = self._wrapped(network)
        average = average_in_place if get_world_size() > 1 else None
        batches = [without_end(loader, first, unmixed_from) for loader in loaders]
        unchecked: list[StepLoss] = []
        network.train()
        with self._bar(number, first, iterations) as bar, self.preemption:
            for step in range(first, iterations):
                batch, *more = (next(endless) for endless in batches)
                # What is random in a network, dropout say, is the same after a resume.
                _reseed(self.device, recipe.seed, number, step + 1, get_rank())
                optimizer.zero_grad()
                method.mixing = unmixed_from is None or step < unmixed_from
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
                share_buffers(network)
                done, last = step + 1, step + 1 == iterations
                ends = self.preemption.agreed() and not last
                logs, saves = (
                    last or done % every == 0 for every in (recipe.log_every, recipe.save_every)
                )
                saves = saves or ends
                unchecked.append(StepLoss(done, made.loss, loaders[0].last_rows))
                if logs or saves or self.device.type == "cpu":  # looking makes a GPU wait
                    weights = named(network, finite) if saves else []
                    require_finite(unchecked, loaders[0], weights, method.name)
                bar.advance()
                if logs:
                    means = means_over_ranks({"loss": float(made.loss), **made.values}, self.device)
                    self.log.write(number, done, loss=means.pop("loss"), lr=rate, **means)
                if recipe.test_every and done % recipe.test_every == 0 and not last:
                    self._test(number, done, network)
                if saves:
                    self._save(number, done, network, start, optimizer)
                if ends:
                    self.preemption.wait_for_all()
                    raise PreemptedError(
                        f"SIGTERM ended the training after step {done}; run it again, and it goes "
                        f"on from {self.path}"
                    )
        for loader in loaders:
            loader.close()
        return network

    def finish(self, network: TransferNetwork) -> Result:
        """Test the network, and write the result."""
        number = len(self.method.phases) - 1
        if self.recipe.clean_statistics:
            _reseed(self.device, self.recipe.seed, number, self.lengths[number] + 1, get_rank())
            self._measure_statistics(network)
        accuracy = self._test(number, self.lengths[number], network)
        if self.log.folder is not None and get_rank() == 0:
            document: dict[str, Any] = {
                "format": FORMAT,
                "model": self.backbone.name,
                "network": network.state_dict(),
                "heads": list(network.heads),
                "target_classes": self.target.class_names,
                "source_classes": self._source_classes(network),
            }
            save_whole(self.log.folder / "model.pt", document)
            recipe = dataclasses.asdict(self.recipe)
            if self.recipe.iterations not in self.lengths:  # epochs, or the method, decided
                recipe["iterations"] = None
            document = {
                "method": described(self.method),
                "model": self.backbone.name,
                "recipe": recipe,
                "iterations": self.lengths,
                "accuracy": accuracy,
            }
            with whole_file(self.log.folder / "result.json") as stream:
                stream.write((json.dumps(document, indent=1) + "\n").encode())
        return Result(network, accuracy)

    def _source_classes(self, network: TransferNetwork) -> list[str] | None:
        """Return the classes of a head's source outputs; a kept classifier has its own."""
        if self.source is None or self.method.keeps_classifier or network.heads == ("target",):
            return None
        return self.source.class_names

    def _iterations(self, number: int) -> int:
        """Return how many steps a phase has."""
        own, epochs = self.method.phases[number].iterations, self.recipe.epochs
        if own is not None or epochs is None:
            return own or self.recipe.iterations
        return max(1, round(epochs * len(self.loaders[number][0])))

    def _passes(self) -> float:
        """Return how often the first phase sees each of its images, on average."""
        loader = self.loaders[0][0]
        seen = self.lengths[0] * loader.batch_size * loader.world_size
        return float(seen) / len(loader.dataset)

    def _unmixed_from(self, number: int) -> int | None:
        """Return the step from which nothing is mixed: the end of an epoch, or ``None``."""
        unmixed, iterations = self.recipe.unmixed, self._iterations(number)
        if unmixed in (0, 1):
            return 0 if unmixed else None
        of_epoch = len(self.loaders[number][0])
        last = (iterations - 1) // of_epoch  # the last end of an epoch that training goes on after
        if last == 0:
            raise ValueError(
                f"unmixed is {unmixed:.3g}, mixing ends where an epoch does, and a training of "
                f"{iterations} iterations has no more than one of {of_epoch}; give unmixed=0, or "
                "more iterations"
            )
        return of_epoch * min(max(1, round((1 - unmixed) * iterations / of_epoch)), last)

    def _survey(self, network: TransferNetwork) -> None:
        """Show the method all target images, to each process alike."""
        crop = CenterCrop(self.recipe.crop)
        options = {**self.common, "rank": 0, "world_size": 1}
        network.eval()
        with ImageLoader(self.target, crop=crop, **options) as loader:
            self.method.survey(network, loader)

    def _measure_statistics(self, network: TransferNetwork) -> None:
        """Measure the statistics of batch normalisation on target images as they are."""
        options = {**self.common, "shuffle": True, "flip": self.recipe.flip, "drop_last": True}
        crop = RandomCrop(self.recipe.crop)
        with ImageLoader(self.target, crop=crop, seed=self.recipe.seed, **options) as loader:
            update_bn(loader, network)
        share_buffers(network)

    def _network(
        self, number: int, phase: Phase, earlier: TransferNetwork | None
    ) -> TransferNetwork:
        """Put the heads of a phase on the backbone as it is; new heads are always the same."""
        _reseed(self.device, self.recipe.seed, number, 0, 0)
        target = source = None
        if "target" in phase.heads or "joint" in phase.heads:
            classes = len(self.target.class_names)
            target = nn.Linear(self.features, classes, device="cpu", dtype=torch.float32)
        if self.method.keeps_classifier:
            if self.classifier is None:
                raise ValueError(
                    f"{self.method.name} trains the pre-trained classifier further, and "
                    f"{self.backbone.name} ends in its features; give a model with its classifier"
                )
            source = deepcopy(self.classifier)
        elif self.source is not None and ("source" in phase.heads or "joint" in phase.heads):
            source = source_head(
                self.classifier, self.features, self.source.class_names, self.source_rows
            )
        body = self.body if earlier is None else earlier.backbone
        network = TransferNetwork(body, target, source, joint="joint" in phase.heads)
        network.autocast_dtype = torch.bfloat16 if self.recipe.amp else None
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def _features(self) -> int:
        if self.classifier is not None:
            return self.classifier.in_features
        with torch.no_grad():  # the model ended in its features; one image tells how many
            size = self.backbone.side(self.recipe.crop)
            body = self.body.to(self.device).eval()
            image = torch.zeros(1, 3, size, size, dtype=torch.float32, device=self.device)
            made = main_output(body(image))
        assert made is not None  # it made the output when the classifier was looked for
        return made.shape[1]

    def _wrapped(self, network: TransferNetwork) -> nn.Module:
        wrapped: nn.Module = network
        if get_world_size() > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            wrapped = DistributedDataParallel(wrapped, device_ids=ids)
            wrapped.broadcast_buffers = False  # they are shared whether a method uses DDP or not
        if self.recipe.compile:
            mode = self.recipe.compile_mode
            # All batches of a training are of one size. Left to itself, a compiler that has seen
            # another training's makes code for any size from then on, which is slower.
            wrapped = torch.compile(wrapped, mode=mode, dynamic=False)  # type: ignore[assignment]
        return wrapped

    def _bar(self, number: int, first: int, iterations: int) -> Progress:
        phases = len(self.method.phases)
        label = self.method.name + (f", phase {number + 1} of {phases}" if phases > 1 else "")
        enabled = self.progress and get_rank() == 0
        return Progress(label, iterations, unit="iterations", done=first, enabled=enabled)

    def _test(self, number: int, step: int, network: TransferNetwork) -> float | None:
        if self.tests is None or network.heads == ("source",):
            return None
        accuracy = evaluate(network, self.tests)
        self.log.write(number, step, accuracy=accuracy)
        return accuracy

    def _save(
        self,
        number: int,
        step: int,
        network: TransferNetwork,
        start: dict[str, Any] | None,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        if self.path is None or get_rank() > 0:
            return
        state = {
            "phase": number,
            "step": step,
            "iterations": self.lengths[number],
            "unmixed_from": self.unmixed_from[number],
            "start": start,
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "method": self.method.state_dict(),
            "loaders": [loader.state_dict() for loader in self.loaders[number]],
            "data": self._data(),
        }
        save_checkpoint(self.path, self.identity, state)

    def _lengths(self) -> tuple[list[int], list[int | None]]:
        """Return the steps of each phase, and from which on it mixes nothing; see `_save`."""
        begun = {} if self.saved is None else {self.saved["phase"]: self.saved}
        lengths, unmixed_from = [], []
        for number, _ in enumerate(self.method.phases):
            saved, own = begun.get(number, {}), self._iterations(number)
            # In epochs of other processes it might have another length now.
            lengths.append(int(saved.get("iterations", own)))
            if lengths[-1] != own:
                _log.info("keeps the %d iterations that it began with", lengths[-1])
            known = "unmixed_from" in saved
            unmixed_from.append(saved["unmixed_from"] if known else self._unmixed_from(number))
        return lengths, unmixed_from

    def _go_on(self) -> None:
        """Put loaders and log where the checkpoint was saved, if there is one."""
        if self.path is None:
            return
        if self.saved is None:
            self.log.cut(0, 0)
            return
        number, step = self.saved["phase"], self.saved["step"]
        require_same_data(self.path, self.saved, self._data())
        load_loaders(self.path, self.loaders[number], self.saved["loaders"])
        ended = number + 1 == len(self.method.phases) and step == self.lengths[number]
        self.log.cut(number, step, test_again=ended)

    def _data(self) -> list[str]:
        """Return what names the samples of each phase."""
        return [str(loaders[0].state_dict()["samples"]) for loaders in self.loaders]

    def _load(self, network: TransferNetwork, state: dict[str, Any]) -> None:
        assert self.path is not None
        load_network(self.path, network, state)

    def _restore(self, network: TransferNetwork, optimizer: torch.optim.Optimizer) -> int:
        """Take up the checkpoint, and return the number of steps that are done."""
        saved = self.saved
        assert saved is not None
        self._load(network, saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        self.method.load_state_dict(saved["method"])
        _log.info("goes on after iteration %d", saved["step"])
        return int(saved["step"])


def _warn_of_lam(method: Method, recipe: Recipe) -> None:
    """Warn where a shared recipe has what this method has an option of its own for."""
    for name in ("alpha", "beta"):
        value = getattr(recipe, name)
        if hasattr(method, name) and value != getattr(Recipe, name) and get_rank() == 0:
            _log.warning(
                "the recipe's %s %g is for methods that mix target and source; %s has its own, %g",
                name,
                value,
                method.name,
                getattr(method, name),
            )


def _warn_of_seen_images(test: Domain, target: Domain) -> None:
    """Warn where a beton of the test set, or a copy of it, was trained on."""
    trained = {beton.fingerprint for beton in target.betons}
    for beton in test.betons:
        if beton.fingerprint in trained and get_rank() == 0:
            _log.warning(
                "%s: is of the test set and holds training images; its accuracy tells nothing of "
                "new images: give a test set of its own",
                beton.origin,
            )


def _reseed(device: torch.device, *parts: int) -> None:
    """Seed torch's generators of the CPU and of the device that trains, and no others."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    seed = int.from_bytes(digest[:8], "little")
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
