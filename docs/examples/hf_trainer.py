"""XMixup in Hugging Face's Trainer: its batches are dicts, and so the loader's become dicts.

pip install transformers accelerate
python hf_trainer.py target.beton source.beton pairing.json
"""

import sys

import torch
from torchvision.models import resnet50
from transformers import Trainer, TrainingArguments

from xmix_data import MixedBatch, RandomCrop, XMixLoader, xmixup_loss


class Dicts:
    """A loader whose batches are dicts, for the Trainer moves these."""

    def __init__(self, loader):
        self.loader, self.set_epoch = loader, loader.set_epoch

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return (batch._asdict() for batch in self.loader)


class TwoHeads(torch.nn.Module):
    """A backbone with a target head and a source head."""

    def __init__(self, model, loader):
        super().__init__()
        features = model.fc.in_features
        model.fc = torch.nn.Identity()
        self.model = model
        self.target_head = torch.nn.Linear(features, loader.num_target_classes)
        self.source_head = torch.nn.Linear(features, loader.num_source_classes)

    def forward(self, images):
        z = self.model(images)
        return self.target_head(z), self.source_head(z)


class XMixupTrainer(Trainer):
    """A Trainer that is fed by an XMixLoader."""

    def __init__(self, loader, **options):
        super().__init__(**options)
        self.loader = loader

    def get_train_dataloader(self):
        return Dicts(self.loader)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(inputs["images"])
        loss = xmixup_loss(*outputs, MixedBatch(**inputs))
        return (loss, outputs) if return_outputs else loss


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
        device=arguments.device,
    )
    network = TwoHeads(model, loader)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    trainer = XMixupTrainer(loader, model=network, args=arguments, optimizers=(optimizer, None))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return [float(loss) for loss in losses]


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train(*sys.argv[1:4], model=resnet50(weights="DEFAULT"), device=device)
