"""What the rest of the toolkit knows about the channels of a network."""

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that must have one width.

    Attributes:
        name: the first layer that produces these channels (with `#k` where a layer's output falls into several groups).
        full: channels of that layer at full width.
        unit: the width is a multiple of this: the number of equal parts that each keep their leading channels, times what
            the channels of a part must be divisible by (group norm).
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
    """Elements of an axis that one group decides: the leading `share * width` of `size` elements are active.

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


# One axis: its runs in order; None where it never changes.
Runs = tuple[Run, ...] | None


@dataclass(frozen=True)
class LayerCall:
    """One use of a conv or linear layer in the inference graph.

    Its multiply-adds for one example are `factor` times the active elements of every axis in `axes`.

    Attributes:
        layer: name of the layer.
        factor: product of the sizes that never change.
        axes: the axes of its weight, and of the positions where it is applied, that can change.
    """

    layer: str
    factor: int
    axes: tuple[tuple[Run, ...], ...]

    def macs(self, widths) -> int:
        """Return the multiply-adds when group i has `widths[i]` channels."""
        return self.factor * prod(sum(run.active(widths) for run in axis) for axis in self.axes)


@dataclass(frozen=True)
class Step:
    """A place in the inference graph that a reader would draw: an input, a conv or linear layer, or a join of branches.

    Attributes:
        name: the layer's name; for a join or an input, one of its own.
        kind: "input", "output", "add" or "mul" (elementwise with several branches), "cat", or the kind of layer ("Conv2d 3x3 /2").
        after: indices of the steps that its inputs come from.
        channels: the channel axis of what comes out, one entry a run: (group name, elements at full width); the name of a
            frozen group, or None where no group decides.
    """

    name: str
    kind: str
    after: tuple[int, ...]
    channels: tuple[tuple[str | None, int], ...]


@dataclass(frozen=True)
class ChannelMap:
    """Everything the rest of the toolkit needs to know about the channels of a network.

    Attributes:
        groups: the groups that can change width.
        frozen: the groups that cannot, each with its reasons.
        tensors: the axes of every parameter and buffer that has one that can change, by the tensor's first name.
        sizes: numbers that modules keep and that must follow: (module, attribute) to the axis whose size it is, or to a
            tuple of axes (or plain numbers) for an attribute that is a row of sizes.
        calls: uses of conv and linear layers in the inference graph.
        fixed_macs: multiply-adds of conv and linear layers whose width never changes and that no call names.
        opaque: modules that could not be traced, with the reason.
        steps: the inference graph, for drawing.
        branches: the lines of forward whose branches are others at some widths.
        writes_inputs: whether forward writes into the tensors that it is given.
        whole: whether the network was traced from its inputs; False where only modules inside it were.
    """

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[ChannelGroup, ...]
    tensors: dict[str, tuple[Runs, ...]]
    sizes: dict[tuple[str, str], tuple]
    calls: tuple[LayerCall, ...]
    fixed_macs: int
    opaque: dict[str, str]
    steps: tuple[Step, ...] = ()
    branches: tuple[str, ...] = ()
    writes_inputs: bool = False
    whole: bool = True
