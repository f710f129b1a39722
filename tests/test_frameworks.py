"""Resuming in other people's loops: the samples are those of a run that was not interrupted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import framework_ranks
import pytest
import torch
import torchvision
from conftest import Betons, Numbered, NumberedBetons
from processes import Server, ended
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from xmix_data import JointHead, RandomCrop, XMixLoader

EPOCHS = 3
SECONDS = 120
"""What takes longer is stuck."""


def loader_of(numbered: NumberedBetons, **options: Any) -> XMixLoader:
    """Nine batches of 37 samples with a tail, or eight and one that is dropped."""
    settings = {"batch_size": 5, "crop": RandomCrop(8), "mix": False, "dtype": torch.uint8}
    return XMixLoader(
        numbered.target, numbered.source, numbered.pairing, seed=2, **{**settings, **options}
    )


def of(batch: Any) -> list[int]:
    return Numbered.indices(batch.target_images)


def uninterrupted(numbered: NumberedBetons, **options: Any) -> list[list[int]]:
    with loader_of(numbered, **options) as loader:
        return [of(batch) for _ in range(EPOCHS) for batch in loader]


def test_a_script_may_replace_print(numbered: NumberedBetons, tmp_path: Path) -> None:
    """As torchvision's references do; numba, loaded after that, would not know what it is."""
    numbered.pairing.save(tmp_path / "p.json")
    code = (
        "import builtins, sys\n"
        "from xmix_data.loader import XMixLoader\n"
        "from xmix_data import RandomCrop\n"
        "assert 'numba' in sys.modules\n"
        "said = builtins.print\n"
        "def only_master(*args, force=False, **kwargs): said(*args, **kwargs)\n"
        "builtins.print = only_master\n"
        "loader = XMixLoader(*sys.argv[1:], batch_size=5, crop=RandomCrop(8))\n"
        "print(len(list(loader)))\n"
    )
    paths = [numbered.target.path, numbered.source.path, tmp_path / "p.json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


@pytest.mark.parametrize("reload", [0, 1])
@pytest.mark.parametrize("drop_last", [True, False])
def test_lightning_goes_on_from_every_step(
    numbered: NumberedBetons, tmp_path: Path, drop_last: bool, reload: int
) -> None:
    """ModelCheckpoint after each step, at an epoch's last step among them; the epoch's end."""
    lightning = pytest.importorskip("lightning", reason="needs lightning")
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, loader: XMixLoader) -> None:
            super().__init__()
            self.save_hyperparameters()  # the loader among them, as paths and numbers
            self.layer, self.seen = torch.nn.Linear(3, 1), list[list[int]]()

        def train_dataloader(self) -> XMixLoader:
            return loader_of(numbered, drop_last=drop_last)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            self.seen.append(of(batch))
            loss: torch.Tensor = self.layer(batch.target_images.float().mean((2, 3))).sum()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e-9)

    def fit(checkpoint: Path | None = None, **limits: int) -> list[list[int]]:
        saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        module = Module(loader_of(numbered, drop_last=drop_last))
        trainer = lightning.Trainer(
            accelerator="cpu",
            logger=False,
            callbacks=[saving],
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
            reload_dataloaders_every_n_epochs=reload,
            **limits,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(module, ckpt_path=checkpoint, weights_only=False)
        return module.seen

    whole = uninterrupted(numbered, drop_last=drop_last)
    steps = len(whole) // EPOCHS
    assert fit(max_epochs=EPOCHS) == whole
    for done in (1, steps - 1, steps, steps + 2, 2 * steps):
        rest = fit(tmp_path / f"step={done}.ckpt", max_epochs=EPOCHS)
        assert rest == whole[done:], f"after step {done} of {steps} in an epoch"


@pytest.mark.parametrize("drop_last", [True, False])
def test_accelerate_goes_on_from_every_step(
    numbered: NumberedBetons, tmp_path: Path, drop_last: bool
) -> None:
    """The loader is registered for checkpointing, as everything with a state is."""
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    whole = uninterrupted(numbered, drop_last=drop_last)
    steps = len(whole) // EPOCHS

    def run(stop: int | None, folder: Path | None) -> list[list[int]]:
        accelerator = accelerate.Accelerator(cpu=True)
        network = torch.nn.Linear(3, 1)
        loader = loader_of(numbered, drop_last=drop_last)
        network, prepared = accelerator.prepare(network, loader)
        assert prepared is loader  # there is nothing in it that could be rebuilt
        accelerator.register_for_checkpointing(loader)
        if folder is not None and stop is None:
            accelerator.load_state(str(folder))
        seen: list[list[int]] = []
        while loader.epoch < EPOCHS:
            for batch in loader:
                seen.append(of(batch))
                if len(seen) == stop:
                    accelerator.save_state(str(folder))
                    return seen
        return seen

    for done in (1, steps - 1, steps, steps + 2):
        folder = tmp_path / str(done)
        assert run(done, folder) + run(None, folder) == whole


def test_accelerate_cannot_skip_by_building_a_dataloader(numbered: NumberedBetons) -> None:
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    with loader_of(numbered) as loader, pytest.raises(AttributeError, match="load_state_dict"):
        accelerator.skip_first_batches(loader, 2)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("drop_last", [True, False])
def test_a_plain_loop_goes_on_from_every_step(
    numbered: NumberedBetons, world_size: int, drop_last: bool
) -> None:
    """The loop of torchvision's and timm's references: set_epoch, then the epoch."""
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "drop_last": drop_last}
        whole = uninterrupted(numbered, **options)
        steps = len(whole) // EPOCHS
        first = loader_of(numbered, **options)
        states = []
        for epoch in range(EPOCHS):
            first.sampler.set_epoch(epoch)
            for _ in first:
                states.append((epoch, first.state_dict()))
        for done in (1, steps - 1, steps, steps + 2):
            epoch, state = states[done - 1]
            again = loader_of(numbered, **options)
            again.load_state_dict(state)
            seen = []
            for number in range(epoch, EPOCHS):
                again.sampler.set_epoch(number)
                seen += [of(batch) for batch in again]
            assert seen == whole[done:]


@pytest.mark.parametrize(
    ("drop_last", "accumulated"), [(True, 1), (False, 1), (True, 3), (False, 3), (True, 7)]
)
def test_the_trainer_goes_on_from_every_step(
    numbered: NumberedBetons, tmp_path: Path, drop_last: bool, accumulated: int
) -> None:
    """As docs/training.md says: by `skip`, and by a state that a callback saves.

    Where accumulation does not divide an epoch, from an epoch's end.
    """
    transformers = pytest.importorskip("transformers", reason="needs transformers")

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(3, 1), list[list[int]]()

        def forward(self, images: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
            self.seen.append(Numbered.indices(images))
            return {"loss": 1e-6 * self.layer(images.float().mean((2, 3))).sum()}

    class SaveLoader(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def __init__(self, loader: XMixLoader) -> None:
            self.loader = loader

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            torch.save(self.loader.state_dict(), folder / "loader.pt")

    def fit(folder: Path, done: int | None = None, earlier: str = "whole") -> list[list[int]]:
        names = ("images", "other_images", "t", "s", "domain", "weight")
        loader, network = loader_of(numbered, drop_last=drop_last, names=names), Network()
        arguments = transformers.TrainingArguments(
            str(folder),
            num_train_epochs=EPOCHS,
            save_strategy="steps",
            save_steps=1,
            gradient_accumulation_steps=accumulated,
            ignore_data_skip=True,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
        )

        trainer = transformers.Trainer(network, arguments, callbacks=[SaveLoader(loader)])
        trainer.get_train_dataloader = lambda: loader
        checkpoint = tmp_path / earlier / f"checkpoint-{done}"
        if done is not None and (done % 2 or accumulated > 1):
            state = transformers.TrainerState.load_from_json(f"{checkpoint}/trainer_state.json")
            epoch, step = divmod(state.global_step, -(-len(loader) // accumulated))
            loader.skip(epoch * len(loader) + step * accumulated)
        elif done is not None:
            loader.load_state_dict(torch.load(checkpoint / "loader.pt"))
        trainer.train(resume_from_checkpoint=done and str(checkpoint))
        assert trainer.state.global_step == EPOCHS * of_epoch
        return network.seen

    whole = uninterrupted(numbered, drop_last=drop_last)
    steps = len(whole) // EPOCHS
    of_epoch = -(-steps // accumulated)
    assert fit(tmp_path / "whole") == whole
    ends = [(of_epoch, steps), (2 * of_epoch, 2 * steps)]
    inside = [(done, done) for done in (1, steps - 1, steps + 2)] if accumulated == 1 else []
    for done, batches in ends + inside:
        rest = fit(tmp_path / "rest", done)
        assert rest == whole[batches:], f"after step {done} of {of_epoch} in an epoch"
        if accumulated == 1 and done + 2 <= 2 * of_epoch:  # and once more, by both ways
            for again in (done + 1, done + 2):
                rest = fit(tmp_path / "again", again, "rest")
                assert rest == whole[again:], f"after step {done}, and step {again}"


def test_a_model_of_transformers_is_saved_as_it_was(tmp_path: Path) -> None:
    """With a joint head for the training alone; and why its loss has to be given."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.ViTConfig(
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=12,
        image_size=16,
        patch_size=8,
        num_labels=4,
    )
    model = transformers.ViTForImageClassification(config)
    model.classifier = JointHead(model.classifier.in_features, 4, 6)
    images, soft = torch.randn(2, 3, 16, 16), torch.rand(2, 10).softmax(1)
    logits = model.train()(images).logits
    assert logits.shape == (2, 10)
    expected = model.eval()(images).logits
    assert expected.shape == (2, 4)
    model.classifier = model.classifier.to_linear()
    model.save_pretrained(tmp_path)
    again = transformers.ViTForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(images).logits, expected)

    model.classifier = JointHead(12, 4, 6)
    own = model.train()(images, labels=soft)  # its own loss is another, and says nothing
    binary = functional.binary_cross_entropy_with_logits(own.logits, soft)
    torch.testing.assert_close(own.loss, binary)


def test_what_foreign_criteria_say_or_do_in_silence() -> None:
    """As troubleshooting lists it, for n = 3, m = 5 and a batch of 4."""
    logits, ids = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
    soft = torch.randn(4, 8).softmax(1)
    said = [
        (lambda: functional.cross_entropy(logits[:, :3], soft), "0D or 1D target tensor expected"),
        (lambda: functional.nll_loss(logits, soft), "0D or 1D target tensor expected"),
        (lambda: functional.binary_cross_entropy_with_logits(logits[:, :3], soft), "Target size"),
        (lambda: functional.cross_entropy(logits, soft, torch.ones(3)), "weight tensor should be"),
        (lambda: functional.cross_entropy(logits, soft, ignore_index=0), "ignore_index is not"),
        (lambda: functional.cross_entropy((logits, logits), ids), "must be Tensor, not tuple"),  # type: ignore[arg-type]
        (lambda: functional.one_hot(ids + 3, 3), "Class values must be smaller than num_classes"),
        (lambda: soft.view(1, -1).expand(2, 4), "The expanded size of the tensor"),
        (lambda: logits.gather(1, soft), "gather(): Expected dtype"),
    ]
    page = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    for call, words in said:
        with pytest.raises((RuntimeError, ValueError, TypeError), match=re.escape(words)):
            call()
        assert words in page
    assert torch.isfinite(functional.cross_entropy(logits, ids))  # n + m logits, ids below n
    assert functional.kl_div(logits, soft, reduction="batchmean").isfinite()


# Loops that save at an epoch's end, with what their packages bring


class TimmsCheckpoints:
    """As timm's train.py: its saver, its averaged weights, its loss."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path):
        timm = pytest.importorskip("timm", reason="needs timm")
        self.criterion = pytest.importorskip("timm.loss").SoftTargetCrossEntropy()
        self.model, self.optimizer, self.path = model, optimizer, folder / "last.pth.tar"
        self.resume_checkpoint = timm.models.resume_checkpoint
        self.average = timm.utils.ModelEmaV3(model, decay=0.9)
        self.saver = timm.utils.CheckpointSaver(
            model,
            optimizer,
            model_ema=self.average,
            checkpoint_dir=str(folder),
            recovery_dir=str(folder),
        )

    def stepped(self) -> None:
        self.average.update(self.model)

    def save(self, epoch: int) -> None:
        self.saver.save_checkpoint(epoch)

    def resume(self) -> int:
        return int(self.resume_checkpoint(self.model, str(self.path), self.optimizer))


class TorchvisionsCheckpoints:
    """As torchvision's references: a dict, averaged weights of torch.optim.swa_utils."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path):
        self.criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
        self.model, self.optimizer, self.path = model, optimizer, folder / "checkpoint.pth"
        decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        self.average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=decay, use_buffers=True
        )

    def stepped(self) -> None:
        self.average.update_parameters(self.model)

    def save(self, epoch: int) -> None:
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**parts, "epoch": epoch}, self.path)

    def resume(self) -> int:
        saved = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        return int(saved["epoch"]) + 1


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("kind", [TimmsCheckpoints, TorchvisionsCheckpoints])
def test_a_loop_that_saves_epochs_goes_on_at_the_next(
    betons: Betons, tmp_path: Path, kind: Any, world_size: int
) -> None:
    """``sampler.set_epoch`` alone says where: the loader's state is not saved."""

    def run(epochs: int, resume: bool = False) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
        loader = XMixLoader(
            betons.target_raw,
            betons.source_raw,
            betons.pairing,
            batch_size=6,
            crop=RandomCrop(32),
            labels="soft",
            rank=world_size - 1,
            world_size=world_size,
        )
        torch.manual_seed(0)
        model = torchvision.models.resnet.ResNet(BasicBlock, [1, 1, 1, 1])
        model.fc = JointHead(512, loader.num_target_classes, loader.num_source_classes)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        checkpoints = kind(model, optimizer, tmp_path)
        seen: list[list[int]] = []
        for epoch in range(checkpoints.resume() if resume else 0, epochs):
            loader.sampler.set_epoch(epoch)
            model.train()
            for images, labels in loader:
                checkpoints.criterion(model(images), labels).backward()
                optimizer.step()
                optimizer.zero_grad()
                checkpoints.stepped()
                rows = loader.last_rows
                assert rows is not None and rows.source is not None
                seen.append([*rows.target.tolist(), *rows.source.tolist()])
            for network in (model, checkpoints.average):  # evaluation sees the target alone
                assert network.eval()(images).shape == (6, loader.num_target_classes)
            checkpoints.save(epoch)
        return seen, model.state_dict()

    whole, weights = run(2)
    first, _ = run(1)
    rest, resumed = run(2, resume=True)
    assert first + rest == whole
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


# Several processes


@pytest.mark.parametrize(
    "framework",
    [
        pytest.param("lightning", marks=pytest.mark.slow),
        "accelerate",
        pytest.param("trainer", marks=pytest.mark.slow),
    ],
)
def test_two_processes_go_on_from_checkpoints(
    numbered: NumberedBetons, tmp_path: Path, forked: Server, framework: str
) -> None:
    """In the middle of an epoch, at its end, and in the middle of the next one."""
    package = {"trainer": "transformers"}.get(framework, framework)
    pytest.importorskip(package, reason=f"needs {package}")
    folder = numbered.target.path.parent
    numbered.pairing.save(folder / "ranks.json")
    whole = []
    for rank in range(2):
        with loader_of(numbered, rank=rank, world_size=2, drop_last=False) as loader:
            whole.append([of(batch) for _ in range(framework_ranks.EPOCHS) for batch in loader])
    steps = len(whole[0]) // framework_ranks.EPOCHS
    stops = (1, steps, steps + 2)
    arguments = framework, str(folder), str(tmp_path), *map(str, stops)
    job = forked.job(2, framework_ranks.__file__, *arguments)
    for rank, (status, out, err) in enumerate(ended(job, SECONDS)):
        assert status == 0, err
        told = json.loads(out.splitlines()[-1])
        assert told["whole"] == whole[rank]
        for stop in stops:
            assert told[str(stop)] == whole[rank][stop:], f"rank {rank}, after step {stop}"
