"""A look back at what a descent found: widen one group again where narrowing another pays for it."""

from dataclasses import replace

from tqdm import tqdm

from autoslim.cost.budgets import Budgets
from autoslim.search.evaluate import Score, ask
from autoslim.search.greedy import SearchPoint
from autoslim.search.orders import OrderTrace
from autoslim.slimmable.supernet import Supernet

_TRIES = 4  # moves that are evaluated a round, of those that promise most


def swap(
    net: Supernet, point: SearchPoint, *, budgets: Budgets, evaluator, score: str = "error", rounds: int = 5,
    trace: OrderTrace | None = None, progress: bool = False,
) -> SearchPoint:  # fmt: skip
    """Improve a found configuration within its target, a swap a round; returns it as it was where none helps.

    A round scores every group one choice wider and one choice narrower. What they cost and gain promises what a swap (or a
    widening for which there is room) would do; the most promising ones are scored, and the best of them is taken if it is
    better than what there was. That is two evaluations of whole configurations for a group and a round.

    Args:
        point: what a search yielded.
        budgets, evaluator, score: those of the search; the evaluator's `score(config) -> Score` is all that is used.
        rounds: at most.
        trace: keeps what was evaluated for this target; what it holds is not evaluated again.
        progress: draw a progress bar on stderr, which ends early where no swap helps any more.
    """
    trace = OrderTrace() if trace is None else trace
    wanted = float(next(iter(point.target.amounts.values())))
    names = [width.name for width in net.widths]
    found: dict[tuple, Score] = {}

    def judge(widths: tuple[int, ...]) -> float:
        if widths not in found:
            config = net.make_config(widths)
            macs = budgets.table.cost(config).macs
            found[widths] = trace.score(wanted, len(found), widths, macs, lambda: ask(evaluator, config))
            bar.update()
        return found[widths].rank(score)

    def met(widths: tuple[int, ...]) -> bool:
        return point.target.met(budgets.costs(dict(zip(names, widths))))

    widths = tuple(point.config.widths[name] for name in names)
    found[widths] = trace.score(wanted, 0, widths, point.cost.macs, lambda: point.score)
    swaps = 0
    most = rounds * (2 * len(names) + _TRIES)
    with tqdm(total=most, desc=f"swaps {point.target.label}", unit="net", disable=not progress, leave=False) as bar:
        while swaps < rounds:
            bar.set_postfix_str(f"round {swaps + 1} of {rounds}, {score} {found[widths].rank(score):.4f}")
            now = judge(widths)
            wider, narrower = ({}, {})
            for i, row in enumerate(net.widths):
                # What an order found may lie between two choices.
                up = next((choice for choice in row.choices if choice > widths[i]), None)
                down = next((choice for choice in reversed(row.choices) if choice < widths[i]), None)
                for moved, to in ((wider, up), (narrower, down)):
                    if to is not None:
                        changed = (*widths[:i], to, *widths[i + 1 :])
                        moved[i] = changed, judge(changed) - now
            moves = [(gain, changed) for changed, gain in wider.values()]
            for i, (up, gain) in wider.items():
                moves += [(gain + cost, (*up[:j], down[j], *up[j + 1 :])) for j, (down, cost) in narrower.items() if j != i]
            moves = sorted(move for move in moves if move[0] < 0 and met(move[1]))[:_TRIES]
            best = min((changed for _, changed in moves), key=judge, default=widths)
            if not judge(best) < now:
                break
            widths, swaps = best, swaps + 1
    trace.pick(wanted, list(found).index(widths))
    if not swaps:
        return point
    config, scored = net.make_config(widths), found[widths]
    cost = budgets.table.cost(config)
    estimate = {**scored.estimate(), "swaps": swaps}
    return replace(point, config=replace(config, cost=cost.to_json(), estimate=estimate), cost=cost, score=scored)
