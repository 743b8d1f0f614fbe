"""The width rule and the initialisation that the networks of this folder share."""

from torch import nn


def scaled(channels: int, width_mult: float, divisor: int) -> int:
    """Return channels * width_mult as a multiple of divisor: the nearest, halves up, one more if that loses over 10 %.

    The rule of the MobileNet families (Slimmable Networks code; torchvision's MobileNetV2 has the same).
    """
    wanted = channels * width_mult
    nearest = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * wanted else nearest + divisor


def initialise(model: nn.Module) -> None:
    """Draw conv weights from N(0, 2 / (k * k * out)), linear weights from N(0, 0.01^2); BN starts as the identity."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
