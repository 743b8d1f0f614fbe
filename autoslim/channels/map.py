"""What the rest of the toolkit knows about the channels of a network."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that must have one width.

    Attributes:
        name: the first layer that produces these channels (with `#k` where a layer's output falls into several groups).
        full: channels of that layer at full width.
        unit: the width is a multiple of this: the number of equal parts that each keep their leading channels.
        members: the layers whose output, or whose normalised input, has this width, in the order of the graph.
        frozen: why the width cannot change; empty when it can.
    """

    name: str
    full: int
    unit: int
    members: tuple[str, ...]
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """Channels of a layer's axis that one group decides: the leading `share * width` of `size` elements are active.

    Attributes:
        group: index of the group, or None where the width never changes.
        size: elements at full width.
        share: active elements per channel of the group's width; a fraction (numerator, denominator).
    """

    group: int | None
    size: int
    share: tuple[int, int] = (0, 1)

    def active(self, widths) -> int:
        """Return the active elements when group i has `widths[i]` channels."""
        return self.size if self.group is None else widths[self.group] * self.share[0] // self.share[1]


@dataclass(frozen=True)
class LayerChannels:
    """The channel axes of a conv, linear or batch norm layer; None where an axis never changes."""

    name: str
    inputs: tuple[Run, ...] | None
    outputs: tuple[Run, ...] | None


@dataclass(frozen=True)
class LayerCall:
    """One use of a conv or linear layer in the inference graph.

    Attributes:
        layer: name of the layer.
        positions: output elements of one example, divided by the output channels.
    """

    layer: str
    positions: int


@dataclass(frozen=True)
class ChannelMap:
    """Everything the rest of the toolkit needs to know about the channels of a network.

    Attributes:
        groups: the groups that can change width.
        frozen: the groups that cannot, each with its reasons.
        layers: the layers with an axis that can change, by name.
        calls: uses of conv and linear layers in the inference graph.
        fixed_macs: multiply-adds of conv and linear layers inside parts that could not be traced.
        opaque: modules that could not be traced, with the reason.
    """

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[ChannelGroup, ...]
    layers: dict[str, LayerChannels]
    calls: tuple[LayerCall, ...]
    fixed_macs: int
    opaque: dict[str, str]
