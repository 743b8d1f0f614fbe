"""Whether the graph of a network does at all widths what its forward does."""

import contextlib
import operator
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from autoslim.channels.proxies import read_size
from autoslim.channels.trace import copied
from autoslim.channels.where import told
from autoslim.slimmable.modes import eval_mode
from autoslim.slimmable.supernet import Supernet

if TYPE_CHECKING:
    from autoslim.search.partial import PartialNet

_WRITERS = {getattr(operator, name) for name in ("iadd", "isub", "imul", "itruediv")}


class NotPartial(Exception):
    """A network that cannot be run in parts; the message says why."""


@contextlib.contextmanager
def in_parts() -> Iterator[None]:
    """Raise NotPartial for what goes wrong in a `with` block: the network runs, its graph does not."""
    try:
        yield
    except (NotPartial, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise NotPartial(f"its graph does not run as its forward does ({told(error)})") from error


def check_writes(nodes: Sequence[fx.Node], place: Mapping[fx.Node, int]) -> None:
    """Refuse operations that write into a value that is read again.

    Args:
        nodes, place: the operations in order, and the place of each.
    """
    for i, node in enumerate(nodes):
        if writes(node):
            written = next(iter(node.all_input_nodes), None)
            again = written is None or written.op in ("placeholder", "get_attr")
            if again or any(place[user] > i for other in _sharing(written, nodes[:i]) for user in other.users):
                raise NotPartial(f"{node.name} writes into a value that is read again")


def _sharing(written: fx.Node, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Return what lies in the memory of a value, of which it may be a view, or the other way round."""
    return [written, *(node for node in nodes if any(_overlap(a, b) for a in _tensors(written) for b in _tensors(node)))]


def _tensors(node: fx.Node) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(node.meta.get("value")) if isinstance(leaf, Tensor)]


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors have numbers in common; halves of one have not."""
    if a.untyped_storage()._cdata != b.untyped_storage()._cdata:
        return False
    if a.dtype != b.dtype:
        return True
    held = torch.zeros(a.untyped_storage().nbytes() // a.element_size(), dtype=torch.bool, device="cpu")
    held.as_strided(a.size(), a.stride(), a.storage_offset()).fill_(True)
    return held.as_strided(b.size(), b.stride(), b.storage_offset()).any().item()


def writes(node: fx.Node) -> bool:
    """Tell whether an operation writes into its first input."""
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.endswith("__")
    name = "" if node.target in vars(operator).values() else getattr(node.target, "__name__", "")  # and_, or_
    named = node.target in _WRITERS or (name.endswith("_") and not name.endswith("__"))
    return node.op == "call_function" and (named or bool(node.kwargs.get("inplace")) or node.kwargs.get("out") is not None)


def check_constants(net: Supernet, nodes: Sequence[fx.Node]) -> None:
    """Refuse tensors that a forward makes from numbers: their values are not in the graph."""
    for node in nodes:
        if node.op == "get_attr" and not _has(net.model, node.target):
            raise NotPartial("its forward makes a tensor of its own")


def _has(model: nn.Module, name: str) -> bool:
    try:
        operator.attrgetter(name)(model)
    except AttributeError:
        return False
    return True


@torch.no_grad()
def check_branches(partial: "PartialNet", nodes: Sequence[fx.Node], inputs) -> None:
    """Refuse branches that may be others at other widths: two widths may come to be equal, or one to be a limit.

    An equality that holds at full width, at the narrowest and at drawn ones is taken to hold at all.
    """
    net, sources = partial.net, partial.influence.sources
    changed = set().union(*partial.influence.changed.values())
    branches = [i for i, node in enumerate(nodes) if node.meta.get("decided") and i in changed]
    if not branches:
        return
    draw = random.Random(0)
    configs = [net.full(), net.narrowest()]
    configs += [net.make_config([draw.choice(width.choices) for width in net.widths]) for _ in range(3)]
    wanted, found = {*branches, *(j for i in branches for j in sources[i])}, []
    for config in configs:
        with eval_mode(net), partial.ready(), net.using(config):
            found.append(partial.run(partial.plan(None, wanted=wanted), inputs=inputs))
    for i in branches:
        value, always = found[0][i], len({bool(values[i]) for values in found}) == 1
        if always and (nodes[i].target is read_size or isinstance(value, (tuple, list))):
            continue  # a width is above 0, and a row has as many entries at all widths
        read = [i, *(j for j in sources[i] if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(found[0][j])))]
        fixed = all(values[j] == found[0][j] for values in found for j in read)
        holds = {operator.eq: True, operator.ne: False}.get(nodes[i].target)
        if not fixed and not all(values[i] is holds for values in found):
            raise NotPartial(f"a branch depends on channels ({nodes[i].meta.get('where', nodes[i].name)})")


@torch.no_grad()
def check_outputs(partial: "PartialNet", inputs, *, groups: bool = True) -> None:
    """Run the network in parts, and every group if it is so asked, next to the whole: code may do what the graph does not show."""
    net = partial.net

    def run(plan, **given):
        with partial.ready():
            return partial.run(plan, **given)

    # The whole network runs as it is, its operations in place included, on inputs of its own.
    with eval_mode(net), net.using(net.full()):
        values = run(partial.plan(None, wanted=partial.read), inputs=inputs)
        if not _close(values[partial.output], net(*copied(inputs))):
            raise NotPartial("its graph gives another output than its forward")
        for width in net.widths if groups else ():
            if len(width.choices) > 1:
                width.value = width.choices[-2]
                same = _close(run(partial.plan(width.name), base=values)[partial.output], net(*copied(inputs)))
                width.value = width.full
                if not same:
                    raise NotPartial(f"its output with a narrower {width.name} is another when it is run in parts")


def _close(a, b) -> bool:
    left, right = ([t for t in tree_leaves(x) if isinstance(t, Tensor)] for x in (a, b))
    return len(left) == len(right) and all(
        x.shape == y.shape
        and torch.allclose(
            x.double(), y.double(), rtol=1e-3, atol=1e-4 * (1 + y.double().nan_to_num().abs().max().item()), equal_nan=True
        )
        for x, y in zip(left, right)
    )
