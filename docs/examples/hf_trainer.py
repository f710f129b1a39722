"""XMixup in Hugging Face's Trainer: batches by the names that models look for, and one joint head.

pip install transformers accelerate
python hf_trainer.py target.beton source.beton pairing.json
"""

import sys

import torch
from torchvision.models import resnet50
from transformers import Trainer, TrainingArguments

from xmix_data import JointHead, RandomCrop, XMixLoader


class Classifier(torch.nn.Module):
    """What transformers' image classifiers are: pixel_values to logits, by name."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return {"logits": self.model(pixel_values)}


def soft_cross_entropy(outputs, labels, num_items_in_batch=None):
    """Mean over the images of a step, whatever the number of its batches and processes."""
    total = torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum")
    # The Trainer counts the elements of `labels`: n + m for each image, and 1 in evaluation.
    return total * labels[0].numel() / (num_items_in_batch or labels.numel())


def train(
    target,
    source,
    pairing,
    *,
    model,
    epochs=30,
    batch_size=48,
    crop=224,
    device="cpu",
    output="run",
):
    """Mean loss of each epoch."""
    # Under torchrun these arguments join the processes: the loader made after them knows its rank.
    arguments = TrainingArguments(
        output,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        use_cpu=device == "cpu",
        lr_scheduler_type="constant",
        max_grad_norm=0,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    loader = XMixLoader(
        target,
        source,
        pairing,
        batch_size=batch_size,
        crop=RandomCrop(crop),
        labels="soft",
        names=("pixel_values", "labels"),
        device=arguments.device,
    )
    JointHead.replace_classifier(
        model, loader.num_target_classes, loader.num_source_classes, crop
    )  # in eval mode it gives the target's logits alone: metrics stay as they are
    network = Classifier(model)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    trainer = Trainer(
        network, arguments, compute_loss_func=soft_cross_entropy, optimizers=(optimizer, None)
    )
    trainer.get_train_dataloader = lambda: loader
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return [float(loss) for loss in losses]


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train(*sys.argv[1:4], model=resnet50(weights="DEFAULT"), device=device)
