"""A network that runs at any configuration over shared weights."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from autoslim.channels.choices import Choices
from autoslim.channels.config import ChannelConfig
from autoslim.channels.copies import share_copy
from autoslim.channels.grid import Grid
from autoslim.channels.groups import find_groups
from autoslim.channels.isolation import same_globals, same_randomness, same_state
from autoslim.channels.map import ChannelGroup, Run
from autoslim.channels.trace import as_inputs, copied, to_device, two_of
from autoslim.channels.where import location, told
from autoslim.errors import ConfigError, ModelError
from autoslim.slimmable.layers import ActiveAxis, Width, adopt, averages
from autoslim.slimmable.modes import eval_mode


def _shape_of_one(value) -> list[int] | None:
    """Return the shape of one example of an input; None for what is no tensor."""
    return list(value.shape[1:]) if isinstance(value, torch.Tensor) else None


def _real(value):
    """Return an input that can be run: zeros in place of one without data."""
    return torch.zeros_like(value, device="cpu") if isinstance(value, torch.Tensor) and value.is_meta else value


class Supernet(nn.Module):
    """A plain CNN made nonuniformly slimmable: every channel group has a width of its own.

    The supernet is a copy of the model's modules that shares the model's own parameters and buffers; its conv, linear and
    batch norm layers compute only the active slice. The model, its forward and the keys of its state_dict stay the same.

    Args:
        model: any network of torch.nn layers; what cannot be slimmed is frozen and listed in `frozen`.
        example: one input `[N, C, H, W]`, or a tuple of the positional inputs.
        divisor, steps, min_ratio, anchor: the grid of legal widths, see `Grid`.
        average_inputs: divide the output of every conv but depthwise by its active inputs (US-Nets, supplementary).
        rules: rules for operations of your own, see `find_groups`; the supernet keeps them, and is pickled with them.
        choices: `include`, `exclude` (names of modules), `freeze`, `release`, `tie` (names of groups), see `find_groups`.

    Raises:
        ModelError: the model cannot be traced, or none of its channels can be slimmed.
        ConfigError: a choice names nothing, or asks for what cannot be.
    """

    def __init__(
        self,
        model: nn.Module,
        example,
        *,
        divisor: int = 8,
        steps: int = 12,
        min_ratio: float = 0.1,
        anchor: str = "full",
        average_inputs: bool = False,
        rules: Mapping | None = None,
        **choices,
    ):
        super().__init__()
        self.grid = Grid(divisor, steps, min_ratio, anchor)
        self.grouping = Choices.of(choices).to_json() | ({"rules": "given in Python"} if rules else {})
        self.rules = dict(rules or {})
        self.channels = find_groups(model, example, rules=rules, **choices)
        if not self.channels.groups:
            why = "; ".join(f"{g.name}: {g.frozen[0]}" for g in self.channels.frozen[:3]) or "it has no conv or linear layer"
            raise ModelError(f"{type(model).__name__} has no channel group that can be slimmed ({why})")
        inputs = list(as_inputs(example))
        # A detector takes lists of images of their own sizes: no shape of one input says what it was made for.
        # Nor does any shape stand for a number or a flag among the inputs.
        whole = self.channels.whole and all(v is None or isinstance(v, torch.Tensor) for v in tree_leaves(inputs))
        self.input_shape = tree_map(_shape_of_one, inputs) if whole else [None]
        self.widths = [Width(g.name, g.full, g.unit, self.grid.choices(g.full, g.unit)) for g in self.channels.groups]
        self._by_name = {width.name: width for width in self.widths}
        self.model = share_copy(model)
        self._adopt(average_inputs)
        self._check_run(example)
        self._source = (model,)  # in a tuple: no submodule

    def _apply(self, fn, recurse: bool = True):
        # `.to` and `.cuda` put new buffers into modules; the model that shares them must not stay behind.
        super()._apply(fn, recurse)
        self._share()
        return self

    def _share(self) -> None:
        for ours, theirs in zip(self.model.modules(), self._source[0].modules(), strict=True):
            theirs._parameters.update(ours._parameters)
            theirs._buffers.update(ours._buffers)

    def _adopt(self, average: bool) -> None:
        axes_of: dict[int, list[ActiveAxis | None]] = {}
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for name, axes in self.channels.tensors.items():
            axes_of[id(tensors[name])] = [runs and ActiveAxis(runs, self.widths) for runs in axes]
        for name, module in list(self.model.named_modules()):
            own = {**module._parameters, **module._buffers}
            axes = {key: axes_of[id(t)] for key, t in own.items() if t is not None and id(t) in axes_of}
            sizes = {key: self._size(row) for (path, key), row in self.channels.sizes.items() if path == name}
            if axes or sizes or isinstance(module, _BatchNorm) or (average and averages(module)):
                adopt(module, axes, sizes, average)

    def _check_run(self, example) -> None:
        """Run at narrower widths what was not traced, or not seen to depend on them: it may not bear them."""
        device, where = next(self.parameters()).device, "its narrowest widths"
        inputs = as_inputs(to_device(tree_map(lambda t: two_of(_real(t)) if self.channels.whole else _real(t), example), device))
        try:
            with eval_mode(self), torch.no_grad(), same_randomness(), same_globals(self.model), same_state(self.model):
                with self.using(self.narrowest()):
                    self(*inputs)
                for number in self._meeting() if self.channels.branches else ():
                    where = f"widths of about {number}"
                    with self.using(self._near(number)):
                        self(*inputs)
        except Exception as error:
            if self.channels.whole:
                lines = ", ".join(self.channels.branches)
                branches = lines and f", where other branches are taken at {lines}"
                raise ModelError(
                    f"{type(self.model).__name__} does not run at {where} ({told(error)} at {location(error)}){branches}; keep what "
                    "is read there whole, with freeze="
                ) from error
            raise ModelError(
                f"{type(self.model).__name__}: {self.channels.opaque['']}; and it does not run with narrower modules inside "
                f"({type(error).__name__}: {error}); name modules to slim with include="
            ) from error

    def _meeting(self) -> list[int]:
        """Return the channels that groups with other choices may both have: code that compares them may branch there."""
        rows = {tuple(width.choices) for width in self.widths}
        counts = Counter(choice for row in rows for choice in row)
        return sorted(choice for choice, count in counts.items() if count > 1)

    def _near(self, number: int) -> ChannelConfig:
        """Return the configuration whose groups are as near to a number of channels as they can be."""
        return self.make_config([min(width.choices, key=lambda choice: abs(choice - number)) for width in self.widths])

    def _size(self, row: tuple):
        """Return what gives the active size of an attribute: an axis, or a row of axes and numbers."""
        if isinstance(row[0], Run):
            return ActiveAxis(row, self.widths)
        return tuple(ActiveAxis(entry, self.widths) if isinstance(entry, tuple) else entry for entry in row)

    @property
    def source(self) -> nn.Module:
        """The plain model that was given; its parameters and buffers are the supernet's."""
        return self._source[0]

    def forward(self, *inputs, **kwargs):
        """Run the model at the configuration that is set."""
        if self.channels.writes_inputs:  # images are run at several widths
            inputs, kwargs = copied(inputs), copied(kwargs)
        return self.model(*inputs, **kwargs)

    def state_dict(self, *args, **kwargs):
        """Return the full weights under the keys of the plain model."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """Load full weights saved by this supernet or by the plain model."""
        result = self.model.load_state_dict(state_dict, strict=strict, assign=assign)
        self._share()
        return result

    # Groups and configurations ------------------------------------------------------------------------------------------

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """The channel groups that can change width."""
        return self.channels.groups

    @property
    def frozen(self) -> tuple[ChannelGroup, ...]:
        """The channel groups that cannot, each with the reasons."""
        return self.channels.frozen

    @property
    def choices(self) -> dict[str, tuple[int, ...]]:
        """Legal widths of every group, ascending."""
        return {width.name: width.choices for width in self.widths}

    @property
    def config(self) -> ChannelConfig:
        """The configuration that is set."""
        return self.make_config([width.value for width in self.widths])

    def make_config(self, widths) -> ChannelConfig:
        """Return a configuration from one width a group, in the order of `groups`."""
        channels = {w.name: (int(value), w.full) for w, value in zip(self.widths, widths, strict=True)}
        # Of one input alone, unless that is itself a row of tensors.
        alone = len(self.input_shape) == 1 and not any(isinstance(part, (list, tuple)) for part in self.input_shape[0] or ())
        shape = self.input_shape[0] if alone else self.input_shape
        return ChannelConfig(channels, self.grid.divisor, input_shape=shape, grouping=self.grouping)

    def full(self) -> ChannelConfig:
        """Return the widest configuration."""
        return self.make_config([width.full for width in self.widths])

    def narrowest(self) -> ChannelConfig:
        """Return the configuration with every group at its narrowest choice."""
        return self.make_config([width.choices[0] for width in self.widths])

    def uniform(self, ratio: float) -> ChannelConfig:
        """Return the configuration with one ratio for all groups, rounded to the divisor."""
        if not 0 < ratio <= 1:
            raise ConfigError(f"ratio {ratio} is not in (0, 1]; pass a part of full width")
        return self.make_config([self.grid.nearest(ratio * w.full, w.full, w.unit) for w in self.widths])

    def random(self, generator: torch.Generator | None = None) -> ChannelConfig:
        """Draw every group's width on its own, uniformly from its choices."""
        draws = torch.rand(len(self.widths), generator=generator).tolist()
        return self.make_config([w.choices[int(draw * len(w.choices))] for w, draw in zip(self.widths, draws)])

    def set(self, config: ChannelConfig | Mapping[str, int]) -> None:
        """Set the active width of every group.

        Args:
            config: a configuration, or group names to channels (all groups).

        Raises:
            ConfigError: a group is unknown or missing, or a width is out of range; nothing is changed.
        """
        widths = config.widths if isinstance(config, ChannelConfig) else dict(config)
        faults = [f"{name!r} is unknown" for name in widths if name not in self._by_name]
        for width in self.widths:
            value = widths.get(width.name)
            if value is None:
                faults.append(f"{width.name!r} is missing")
            elif not 1 <= value <= width.full:
                faults.append(f"{width.name!r} wants {value} of {width.full} channels")
            elif value % width.unit:
                faults.append(f"{width.name!r} has {value} channels, not a multiple of {width.unit}")
        if faults:
            raise ConfigError(f"{len(faults)} widths do not fit the model: {'; '.join(faults)}; see Supernet.groups")
        for width in self.widths:
            width.value = int(widths[width.name])

    @contextlib.contextmanager
    def using(self, config: ChannelConfig | Mapping[str, int]) -> Iterator["Supernet"]:
        """Set a configuration for the length of a `with` block."""
        before = {width.name: width.value for width in self.widths}
        self.set(config)
        try:
            yield self
        finally:
            self.set(before)
