"""XMixup in Lightning: the loader is the train_dataloader, as it is.

pip install lightning
python lightning_module.py target.beton source.beton pairing.json
"""

import sys

import lightning
import torch
from torchvision.models import resnet50

from xmix_data import RandomCrop, XMixLoader, xmixup_loss


class XMixupModule(lightning.LightningModule):
    """A backbone with a target head and a source head."""

    def __init__(self, model, loader):
        super().__init__()
        features = model.fc.in_features
        model.fc = torch.nn.Identity()
        self.model = model
        self.target_head = torch.nn.Linear(features, loader.num_target_classes)
        self.source_head = torch.nn.Linear(features, loader.num_source_classes)

    def training_step(self, batch, index):
        z = self.model(batch.images)
        loss = xmixup_loss(self.target_head(z), self.source_head(z), batch)
        self.log("loss", loss, on_epoch=True, on_step=False, batch_size=len(batch.images))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)


class Losses(lightning.Callback):
    """Keeps the mean loss of each epoch."""

    def __init__(self):
        self.values = []

    def on_train_epoch_end(self, trainer, module):
        self.values.append(float(trainer.callback_metrics["loss"]))
        print(f"epoch {len(self.values)}: loss {self.values[-1]:.3f}")


def train(target, source, pairing, *, model, epochs=30, batch_size=48, crop=224, device="cpu"):
    """Mean loss of each epoch."""
    # Lightning moves nothing: batches are on the device already. It asks the loader's length, and
    # iterates it once an epoch. Under its DDP, make the loader in `train_dataloader()`: there the
    # ranks are known.
    loader = XMixLoader(
        target, source, pairing, batch_size=batch_size, crop=RandomCrop(crop), device=device
    )
    losses = Losses()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu" if device == "cpu" else "gpu",
        devices=1,
        callbacks=[losses],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(XMixupModule(model, loader), loader)
    return losses.values


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train(*sys.argv[1:4], model=resnet50(weights="DEFAULT"), device=device)
