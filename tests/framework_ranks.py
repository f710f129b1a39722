"""Two epochs in a framework's own loop, as one of several processes, then from checkpoints of it.

    python framework_ranks.py FRAMEWORK FOLDER OUTPUT STEP [STEP ...]

FOLDER holds the numbered betons and ``ranks.json``. A line of JSON is printed: which images each
step got, in the whole run and after each resume. Run as a job, for instance by torchrun.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pictures import Numbered

from xmix_data import RandomCrop, XMixLoader

EPOCHS = 2
Steps = list[list[int]]


def loader_of(folder: Path, **options: Any) -> XMixLoader:
    """Unmixed crops, which show the number of their image; epochs have a tail that is padded."""
    files = (folder / name for name in ("target.beton", "source.beton", "ranks.json"))
    settings = {"batch_size": 5, "crop": RandomCrop(8), "mix": False, "dtype": torch.uint8}
    return XMixLoader(*files, seed=2, drop_last=False, **{**settings, **options})


class Network(torch.nn.Module):
    """Keeps which images it got."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(3, 1), Steps()

    def forward(self, images: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        self.seen.append(Numbered.indices(images))
        return {"loss": 1e-6 * self.layer(images.float().mean((2, 3))).sum()}


def lightning(folder: Path, output: Path, resume: int | None) -> Steps:
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = Network()

        def train_dataloader(self) -> XMixLoader:
            return loader_of(folder)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss: torch.Tensor = self.network(batch.target_images)["loss"]
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e-9)

    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=int(os.environ["WORLD_SIZE"]),
        max_epochs=EPOCHS,
        callbacks=[ModelCheckpoint(output, "{step}", every_n_train_steps=1, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=output,
    )
    checkpoint = None if resume is None else output / f"step={resume}.ckpt"
    trainer.fit(module, ckpt_path=checkpoint, weights_only=False)
    return module.network.seen


def accelerate(folder: Path, output: Path, resume: int | None) -> Steps:
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    network, loader = Network(), loader_of(folder)
    optimizer = torch.optim.SGD(network.parameters(), 1e-9)
    model, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    accelerator.register_for_checkpointing(loader)
    if resume is not None:
        accelerator.load_state(str(output / str(resume)))
    while loader.epoch < EPOCHS:
        for batch in loader:
            accelerator.backward(model(batch.target_images)["loss"])
            optimizer.step()
            if resume is None:
                accelerator.save_state(str(output / str(len(network.seen))))
    accelerator.wait_for_everyone()
    return network.seen


def trainer(folder: Path, output: Path, resume: int | None) -> Steps:
    import transformers

    arguments = transformers.TrainingArguments(
        str(output / ("whole" if resume is None else f"from-{resume}")),
        num_train_epochs=EPOCHS,
        save_strategy="steps",
        save_steps=1,
        ignore_data_skip=True,
        report_to=[],
        use_cpu=True,
        ddp_backend="gloo",
        disable_tqdm=True,
        logging_strategy="no",
    )
    loader = loader_of(folder, names=("images", "other", "t", "s", "domain", "weight"))
    network = Network()
    training = transformers.Trainer(model=network, args=arguments)
    training.get_train_dataloader = lambda: loader
    checkpoint = None
    if resume is not None:
        checkpoint = str(output / "whole" / f"checkpoint-{resume}")
        loader.skip(resume * arguments.gradient_accumulation_steps)
    training.train(resume_from_checkpoint=checkpoint)
    return network.seen


FRAMEWORKS: dict[str, Callable[[Path, Path, int | None], Steps]] = {
    function.__name__: function for function in (lightning, accelerate, trainer)
}


def main() -> None:
    os.environ.setdefault("TORCHELASTIC_RUN_ID", "none")  # what torchrun sets, and frameworks ask
    warnings.simplefilter("ignore")
    run = FRAMEWORKS[sys.argv[1]]
    folder, output = map(Path, sys.argv[2:4])
    told: dict[str, Steps] = {"whole": run(folder, output, None)}
    for step in sys.argv[4:]:
        told[step] = run(folder, output, int(step))
    print(json.dumps(told))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
