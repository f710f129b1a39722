"""XMixup under Ray Train: the trainer that is included, on Ray's processes, restarted by Ray.

pip install "ray[train]"
python ray_train.py target.beton source.beton pairing.json FOLDER

All machines must see the betons and FOLDER, which the checkpoint is written to.
"""

import json
import sys
from pathlib import Path

import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def work(config):
    """One of Ray's processes: Ray has made the process group, which `fit` finds."""
    from xmix_data.methods import XMixup
    from xmix_data.training import Recipe, fit

    processes = ray.train.get_context().get_world_size()
    recipe = Recipe(**config["recipe"], batch_size=config["images_of_a_step"] // processes)
    fit(
        XMixup(),
        config["model"],
        config["target"],
        source=config["source"],
        pairing=config["pairing"],
        recipe=recipe,
        device=ray.train.torch.get_device(),
        output=f"{config['folder']}/xmixup",  # goes on from the checkpoint that is there
    )


def train(target, source, pairing, folder, *, model, workers=8, images_of_a_step=384, **recipe):
    """Train, and start the processes again where one of them or its machine ends: the result."""
    config = {
        "target": target,
        "source": source,
        "pairing": pairing,
        "folder": folder,
        "model": model,
        "images_of_a_step": images_of_a_step,
        "recipe": recipe,
    }
    gpus = torch.cuda.is_available()
    trainer = TorchTrainer(
        work,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=RunConfig(
            name="xmixup", storage_path=folder, failure_config=FailureConfig(max_failures=10)
        ),
    )
    trainer.fit()
    return json.loads(Path(folder, "xmixup", "result.json").read_text())


if __name__ == "__main__":
    print(train(*sys.argv[1:5], model="resnet50"))
