"""XMixup in a loop that keeps its criterion: soft labels over both label sets, one joint head.

    python own_criterion.py target.beton source.beton pairing.json

Whatever takes (images, labels) and class probabilities as labels works unchanged.
"""

import sys

import torch
from torchvision.models import resnet50

from xmix_data import JointHead, RandomCrop, XMixLoader


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
    )
    JointHead.replace_classifier(
        model, loader.num_target_classes, loader.num_source_classes, crop
    )  # in eval mode it gives the target's logits alone
    model.to(device, memory_format=torch.channels_last).train()
    criterion = torch.nn.CrossEntropyLoss()
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
    train(*sys.argv[1:4], model=resnet50(weights="DEFAULT"), device=device)
