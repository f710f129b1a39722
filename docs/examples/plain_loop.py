"""XMixup in a plain PyTorch loop: a target head and a source head on one backbone.

python plain_loop.py target.beton source.beton pairing.json
"""

import sys

import torch
from torchvision.models import resnet50

from xmix_data import RandomCrop, XMixLoader, xmixup_loss


def train(target, source, pairing, *, model, epochs=30, batch_size=48, crop=224, device="cpu"):
    """Mean loss of each epoch."""
    loader = XMixLoader(
        target, source, pairing, batch_size=batch_size, crop=RandomCrop(crop), device=device
    )
    pretrained = model.fc  # its rows know the source, if it is ImageNet: a better start
    features = pretrained.in_features
    model.fc = torch.nn.Identity()
    target_head = torch.nn.Linear(features, loader.num_target_classes)
    source_head = torch.nn.Linear(features, loader.num_source_classes)
    parts = torch.nn.ModuleList([model, target_head, source_head])
    parts.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(parts.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    losses = []
    for _ in range(epochs):
        total = torch.zeros((), device=device)
        for batch in loader:
            z = model(batch.images)
            loss = xmixup_loss(target_head(z), source_head(z), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        losses.append(float(total) / len(loader))
        print(f"epoch {loader.epoch}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train(*sys.argv[1:4], model=resnet50(weights="DEFAULT"), device=device)
