"""XMixup with a model of timm: its own mean and standard deviation, and its soft-label loss.

pip install timm
python timm_model.py target.beton source.beton pairing.json
"""

import sys

import timm
import torch
from timm.loss import SoftTargetCrossEntropy

from xmix_data import RandomCrop, XMixLoader


def train(target, source, pairing, *, model, epochs=30, batch_size=48, crop=224, device="cpu"):
    """Mean loss of each epoch."""
    loader = XMixLoader(
        target,
        source,
        pairing,
        batch_size=batch_size,
        crop=RandomCrop(crop),
        device=device,
        labels="soft",
        mean=model.pretrained_cfg["mean"],
        std=model.pretrained_cfg["std"],
    )
    model.reset_classifier(loader.num_target_classes + loader.num_source_classes)
    model.to(device, memory_format=torch.channels_last).train()
    criterion = SoftTargetCrossEntropy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    losses = []
    for _ in range(epochs):
        total = torch.zeros((), device=device)
        for images, labels in loader:
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        losses.append(float(total) / len(loader))
        print(f"epoch {loader.epoch}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train(*sys.argv[1:4], model=timm.create_model("resnet50", pretrained=True), device=device)
