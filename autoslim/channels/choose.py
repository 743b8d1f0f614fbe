"""Apply what a user decides about the groups to a finished pass."""

import fnmatch

from autoslim.channels.choices import Choices
from autoslim.channels.flow import OUTPUT, Flow
from autoslim.channels.segments import Segment, Source, axis_size
from autoslim.errors import ConfigError
from autoslim.factories import closest


class Chooser:
    """Applies a user's decisions to one finished pass.

    Args:
        flow: the pass; its ties are changed.
        names: group name of each shared width, by its representative.
        members: layers of each shared width, by its representative.
    """

    def __init__(self, flow: Flow, names: dict[Source, str], members: dict[Source, tuple[str, ...]]):
        self._flow = flow
        self._names = names
        self._members = members
        self._own: set[str] = {OUTPUT}

    def apply(self, choices: Choices) -> None:
        """Freeze, release and tie.

        Raises:
            Refine: finer parts must be known before two groups can be tied.
            ConfigError: a name fits nothing, or what is asked cannot be done.
        """
        self._within(choices)
        for pattern in choices.freeze:
            for root in self._groups(pattern, "freeze"):
                self._freeze(root, f"frozen by {pattern!r}")
        for pattern in choices.release:
            for root in self._groups(pattern, "release"):
                reasons = self._flow.ties.reasons().get(root, [])
                if other := [why for why in reasons if why not in self._own]:
                    raise ConfigError(
                        f"group {self._names[root]!r} cannot be released: {other[0]}; leave it frozen, or change that code"
                    )
                self._flow.ties.unfreeze(root)
        for row in choices.tie:
            self._tie([axis for pattern in row for axis in self._axes(pattern)])

    def _within(self, choices: Choices) -> None:
        modules = self._flow.traced.modules
        for key, patterns in (("include", choices.include), ("exclude", choices.exclude)):
            for pattern in patterns:
                if not any(_inside(name, pattern) for name in modules if name):
                    raise ConfigError(
                        f"{key} {pattern!r} fits no module{closest(pattern, modules)}; see the network's named_modules()"
                    )
        for root, sources in self._flow.ties.classes().items():
            layers = [self._flow.ties.producers[source] for source in sources]
            outside = [layer for layer in layers if not any(_inside(layer, p) for p in choices.include)]
            if choices.include and outside:
                self._freeze(root, f"{outside[0]} is outside of include {', '.join(map(repr, choices.include))}")
            for pattern in choices.exclude:
                if any(_inside(layer, pattern) for layer in layers):
                    self._freeze(root, f"excluded by {pattern!r}")

    def _freeze(self, root: Source, why: str) -> None:
        self._own.add(why)
        self._flow.ties.freeze_source(root, why)

    def _groups(self, pattern: str, key: str) -> list[Source]:
        names = {root: (name, name.partition("#")[0]) for root, name in self._names.items()}
        found = [root for root, both in names.items() if any(fnmatch.fnmatchcase(name, pattern) for name in both)]
        found = found or [r for r, members in self._members.items() if any(fnmatch.fnmatchcase(m, pattern) for m in members)]
        if not found:
            near = closest(pattern, self._names.values())
            raise ConfigError(f"{key} {pattern!r} fits no channel group{near}; `autoslim inspect` lists them")
        return [root for root in found if root in self._names]

    def _axes(self, pattern: str) -> list[tuple[Segment, ...]]:
        """Return the channels of the first layer of each group, the parts of one layer in a row."""
        ties, classes = self._flow.ties, self._flow.ties.classes()
        axes: dict[tuple[str, int], list[Source]] = {}
        for root in self._groups(pattern, "tie"):
            sources = classes[ties.root(root)]
            axes.setdefault(sources[0][0], []).extend(s for s in sources if s[0] == sources[0][0])
        return [ties.row_of(sorted(set(sources))) for sources in axes.values()]

    def _tie(self, axes: list[tuple[Segment, ...]]) -> None:
        for other in axes[1:]:
            if not self._flow.ties.can_tie(axes[0], other):
                sizes = " and ".join(f"{self._name(axis)!r} ({axis_size(axis)} channels)" for axis in (axes[0], other))
                raise ConfigError(f"{sizes} cannot be tied: they are not alike part by part; tie groups of one full width")
            self._flow.ties.tie(axes[0], other, "")

    def _name(self, axis: tuple[Segment, ...]) -> str:
        return self._flow.ties.producers[axis[0].source]


def _inside(name: str, pattern: str) -> bool:
    """Tell whether a module is one that a pattern names, or lies inside it."""
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[: i + 1]), pattern) for i in range(len(parts)))
