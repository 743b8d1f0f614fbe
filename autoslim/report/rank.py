"""Does the supernet rank networks as retraining does? Kendall's tau-b, in numbers, in words and in a picture."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from autoslim.cost.amounts import labels
from autoslim.errors import RunError
from autoslim.report import series, style
from autoslim.report.tables import align

# The looks of other plots; what is neither uniform nor searched takes the others in turn.
_LOOKS = {"uniform": series.look(1), "searched": series.look(0)}
_EXACT = 8  # configurations up to which all permutations are counted
_DRAWS = 20_000
_SEED = "retrained_seed"


def kendall_tau(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Kendall's tau-b of two rankings, -1 to 1; NaN where all values of one are equal.

    Of all pairs, those in the same order less those in opposite orders, divided by the geometric mean of the pairs that x and
    that y tell apart (Kendall, 1945).
    """
    a, b = _signs(x), _signs(y)
    apart = math.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / apart) if apart else math.nan


def kendall_p(x: Sequence[float], y: Sequence[float], seed: int = 0) -> float:
    """Return how likely unrelated rankings have a tau-b this far from 0, on either side; NaN as for `kendall_tau`.

    All permutations are counted for up to 8 values, else 20,000 random ones.
    """
    if math.isnan(kendall_tau(x, y)):
        return math.nan
    a, b, count = _signs(x), _signs(y), len(x)
    if count <= _EXACT:
        orders, extra = np.array(list(itertools.permutations(range(count)))), 0
    else:
        # The order that was seen counts as drawn, so that no p-value is 0.
        orders, extra = np.random.default_rng(seed).permuted(np.tile(np.arange(count), (_DRAWS, 1)), axis=1), 1
    found = abs((a * b).sum())
    as_far = sum(abs(float((a * b[np.ix_(order, order)]).sum())) >= found for order in orders)
    return (as_far + extra) / (len(orders) + extra)


def _signs(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    return np.sign(values[:, None] - values[None, :])


def ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of every value, 1 for the highest; equal values share the mean of their ranks."""
    return [sum(v > value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]


def rank_rows(measured: Sequence[dict]) -> list[dict]:
    """Return one row a configuration, with ranks over all of them.

    Args:
        measured: `{"configuration", "kind", "target", "macs", "params", "estimate": {"error", "loss", "images"}, "retrained"}`,
            where `retrained` is `{seed: error}`, the same seeds for all.

    Returns:
        configuration, kind, target, macs, params, estimate (accuracy, 0 to 1), estimate_loss, estimate_rank, retrained (mean
        accuracy), lowest, highest, retrained_rank, one `retrained_seedN` a seed, images.
    """
    rows = []
    for each in measured:
        seeds = {f"{_SEED}{seed}": _accuracy(error) for seed, error in each["retrained"].items()}
        values, mean = list(seeds.values()), _accuracy(sum(each["retrained"].values()) / len(seeds))
        rows.append({
            **{key: each[key] for key in ("configuration", "kind", "target", "macs", "params")},
            "estimate": _accuracy(each["estimate"]["error"]), "estimate_loss": each["estimate"]["loss"], "estimate_rank": 0.0,
            "retrained": mean, "lowest": min(values), "highest": max(values), "retrained_rank": 0.0,
            **seeds, "images": each["estimate"]["images"],
        })  # fmt: skip
    for key in ("estimate", "retrained"):
        for row, rank in zip(rows, ranks([row[key] for row in rows])):
            row[f"{key}_rank"] = rank
    return rows


def _accuracy(error: float) -> float:
    return round(1 - error, 12)  # as many mistakes, however they were added up, are a tie


def describe_rank(rows: Sequence[dict]) -> dict:
    """Compare the supernet's ranking with that of retraining, in numbers and in words.

    Returns:
        configurations, seeds: how many.
        tau, p: tau-b of the estimated accuracy and the mean retrained accuracy, and its p-value; None where undefined.
        loss_tau, loss_p: the same with the estimated loss, the lowest first.
        between_seeds: mean tau-b of the retrained accuracies of two seeds: how well retraining ranks like itself; None with
            one seed.
        targets: the same entries for each target, where there are several: over all of them, that larger networks are better
            counts, too.
        words: what this says.

    Raises:
        RunError: there are fewer than 3 configurations.
    """
    if len(rows) < 3:
        raise RunError(f"{len(rows)} configurations have no ranking to compare; take 3 or more, better 8")
    targets = list(dict.fromkeys(row["target"] for row in rows))
    report = _compare(rows)
    words = [f"Over {_words(report)}."]
    if len(targets) > 1:
        report["targets"] = {}
        for target, name in zip(targets, labels([{"macs": target} for target in targets])):
            among = [row for row in rows if row["target"] == target]
            report["targets"][name] = found = _compare(among)
            words.append(f"At {name} MACs alone, over {_words(found)}.")
    return report | {"words": " ".join(words)}


def _compare(rows: Sequence[dict]) -> dict:
    estimate, loss, retrained = ([row[key] for row in rows] for key in ("estimate", "estimate_loss", "retrained"))
    better = [-value for value in loss]
    seeds = [[row[key] for row in rows] for key in rows[0] if key.startswith(_SEED)]
    pairs = [tau for x, y in itertools.combinations(seeds, 2) if not math.isnan(tau := kendall_tau(x, y))]
    found = {
        "tau": kendall_tau(estimate, retrained), "p": kendall_p(estimate, retrained), "loss_tau": kendall_tau(better, retrained),
        "loss_p": kendall_p(better, retrained), "between_seeds": sum(pairs) / len(pairs) if pairs else None,
    }  # fmt: skip
    found = {key: None if value is None or math.isnan(value) else value for key, value in found.items()}
    return {"configurations": len(rows), "seeds": len(seeds)} | found


def _words(found: dict) -> str:
    text = f"{found['configurations']} configurations, Kendall tau-b of supernet estimate and retrained accuracy is "
    text += (
        f"{_tau(found['tau'], found['p'])}, of estimated loss and retrained accuracy {_tau(found['loss_tau'], found['loss_p'])}"
    )
    if found["seeds"] < 2:
        return f"{text}; how well one seed of retraining ranks like another is not known"
    return f"{text}; two seeds of retraining rank alike with {_tau(found['between_seeds'])}"


def _tau(tau: float | None, p: float | None = None) -> str:
    if tau is None:
        return "undefined (all are equal)"
    return f"{tau:.2f}" if p is None else f"{tau:.2f} (p {p:.2g})"


def rank_table(rows: Sequence[dict]) -> str:
    """Return a table, the best retrained configuration first."""
    lines = [("configuration", "MACs", "supernet estimate*", "loss*", "rank", "retrained accuracy*", "rank")]
    for row in sorted(rows, key=lambda row: row["retrained_rank"]):
        spread = f" ({row['lowest']:.2%} to {row['highest']:.2%})" if _seeds(rows) > 1 else ""
        lines.append((
            row["configuration"], f"{row['macs']:,}", f"{row['estimate']:.2%}", f"{row['estimate_loss']:.4f}",
            f"{row['estimate_rank']:g}", f"{row['retrained']:.2%}{spread}", f"{row['retrained_rank']:g}",
        ))  # fmt: skip
    seeds = f"mean of {_seeds(rows)} seeds (lowest to highest)" if _seeds(rows) > 1 else "one seed"
    return f"{align(lines)}\n* on the same {rows[0]['images']} held-out training images, not the test images; retrained: {seeds}"


def _seeds(rows: Sequence[dict]) -> int:
    return sum(key.startswith(_SEED) for key in rows[0])


def draw_rank(out: str | Path, rows: Sequence[dict]) -> Path:
    """Draw retrained accuracy over the supernet's estimate as PNG or SVG; returns the path.

    Every configuration has a number, which the legend explains; bars go from the lowest to the highest seed.

    Args:
        out: ends in .png or .svg.
        rows: of `rank_rows`.

    Raises:
        RunError: another suffix, values that do not fit, or the picture cannot be written.
    """
    out = style.check_out(out)
    return series.save(_figure(rows), out)


def _figure(rows: Sequence[dict]) -> Figure:
    rows = series.check_rows(rows, ("macs", "estimate", "retrained", "lowest", "highest"), "configuration")
    figure = style.new_figure(8.4, max(4.6, 1.6 + 0.24 * len(rows)))
    axes = figure.subplots()
    scale, letter = style.macs_unit([row["macs"] for row in rows])
    drawn, others = [], itertools.cycle(map(series.look, range(2, 8)))
    for number, row in enumerate(rows, 1):
        looks = {**(_LOOKS.get(row["kind"]) or next(others)), "linestyle": "none", "markersize": 7, "markeredgecolor": "white"}
        x, y, low, high = (100 * row[key] for key in ("estimate", "retrained", "lowest", "highest"))
        if high > low:
            axes.vlines(x, low, high, color=looks["color"], linewidth=1.2, alpha=0.6, zorder=2)
        axes.plot(x, y, **looks, zorder=3)
        axes.annotate(
            f"{number}", (x, y), xytext=(6, 4), textcoords="offset points", fontsize=style.NORMAL, color=style.INK, zorder=2.5,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip
        label = series.name(f"{number}  {row['configuration']}, {row['macs'] / scale:.4g}{letter} MACs", 34)
        drawn.append(Line2D([], [], **looks, label=label))
    style.tidy(axes)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.margins(x=0.07, y=0.07)
    axes.set_xlabel("supernet estimate: top-1 accuracy with shared weights (%)", fontsize=style.NORMAL)
    axes.set_ylabel("retrained from scratch: top-1 accuracy (%)", fontsize=style.NORMAL)
    series.legend_beside(axes, drawn)
    seeds = _seeds(rows)
    foot = f"both on the same {rows[0]['images']} held-out training images; retrained: "
    foot += f"mean of {seeds} seeds, bars from lowest to highest" if seeds > 1 else "one seed"
    series.head_and_foot(figure, _title(rows), foot)
    return figure


def _title(rows: Sequence[dict]) -> str | None:
    if len(rows) < 3:
        return None
    found = describe_rank(rows)
    return f"Kendall tau-b {_tau(found['tau'], found['p'])} over {found['configurations']} configurations"
