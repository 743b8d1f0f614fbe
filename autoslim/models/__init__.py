"""Plain torch.nn networks of the shipped search spaces; nothing in them knows about slimming."""

from .digits import digits_cnn
from .mnasnet import mnasnet
from .mobilenet import mobilenet_v1, mobilenet_v2_cifar
from .resnet import resnet_cifar
from .resnet50 import resnet50
from .shufflenet import shufflenet

__all__ = ["digits_cnn", "mnasnet", "mobilenet_v1", "mobilenet_v2_cifar", "resnet50", "resnet_cifar", "shufflenet"]
