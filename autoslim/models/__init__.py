"""Plain torch.nn networks of the shipped search spaces; nothing in them knows about slimming."""

from .digits import digits_cnn
from .mobilenet import mobilenet_v1, mobilenet_v2_cifar
from .resnet import resnet_cifar

__all__ = ["digits_cnn", "mobilenet_v1", "mobilenet_v2_cifar", "resnet_cifar"]
