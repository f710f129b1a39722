"""Resuming in other people's loops: the samples are those of a run that was not interrupted."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Numbered, NumberedBetons
from torch.nn import functional

from xmix_data import RandomCrop, XMixLoader

EPOCHS = 3


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
        def __init__(self) -> None:
            super().__init__()
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
        module = Module()
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
    with loader_of(numbered) as loader:
        skipping = accelerator.skip_first_batches(loader, 2)
        with pytest.raises(TypeError, match="load_state_dict"):
            next(iter(skipping))


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


@pytest.mark.parametrize("drop_last", [True, False])
def test_the_trainer_goes_on_from_every_step(
    numbered: NumberedBetons, tmp_path: Path, drop_last: bool
) -> None:
    """As docs/training.md says: a callback saves the state, and no data are skipped."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")

    class Dicts:
        def __init__(self, loader: XMixLoader) -> None:
            self.loader, self.set_epoch = loader, loader.set_epoch

        def __len__(self) -> int:
            return len(self.loader)

        def __iter__(self) -> Any:
            return ({"images": batch.target_images} for batch in self.loader)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(3, 1), list[list[int]]()

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            self.seen.append(Numbered.indices(images))
            return {"loss": 1e-6 * self.layer(images.float().mean((2, 3))).sum()}

    class SaveLoader(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def __init__(self, loader: XMixLoader) -> None:
            self.loader = loader

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            torch.save(self.loader.state_dict(), folder / "loader.pt")

    def fit(folder: Path, checkpoint: Path | None = None) -> list[list[int]]:
        loader, network = loader_of(numbered, drop_last=drop_last), Network()
        arguments = transformers.TrainingArguments(
            str(folder),
            num_train_epochs=EPOCHS,
            save_strategy="steps",
            save_steps=1,
            ignore_data_skip=True,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
        )

        class Trainer(transformers.Trainer):  # type: ignore[misc, name-defined]
            def get_train_dataloader(self) -> Any:
                return Dicts(loader)

        if checkpoint is not None:
            loader.load_state_dict(torch.load(checkpoint / "loader.pt"))
        trainer = Trainer(model=network, args=arguments, callbacks=[SaveLoader(loader)])
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        return network.seen

    whole = uninterrupted(numbered, drop_last=drop_last)
    steps = len(whole) // EPOCHS
    assert fit(tmp_path / "whole") == whole
    for done in (1, steps - 1, steps, steps + 2):
        rest = fit(tmp_path / "rest", tmp_path / "whole" / f"checkpoint-{done}")
        assert rest == whole[done:], f"after step {done} of {steps} in an epoch"


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
