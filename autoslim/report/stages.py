"""Which stage of a network is cheapest to slim: a spectrum for each stage beside that of the uniform network."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from autoslim.errors import RunError
from autoslim.report import series, style

UNIFORM = "none"
_KEYS = ("stage", "ratio", "macs", "accuracy", "seed")
_FIRM = {"color": style.INK, "marker": "o", "linestyle": "-"}


def draw_stages(out: str | Path, rows: list[dict], *, measure: str = "top-1 accuracy") -> Path:
    """Draw accuracy over multiply-adds, one line for each stage that is slimmed alone, as PNG or SVG; returns the path.

    The network slimmed uniformly is the firm black line. Lines are means over seeds, bands go from the lowest to the highest
    (US-Nets, supplementary: slimming one stage of a nonuniform network).

    Args:
        out: ends in .png or .svg.
        rows: `{"stage", "ratio", "macs", "accuracy", "seed"}`: the global ratio, accuracy from 0 to 1, stage "none" for
            uniform slimming; the order of the stages is that of the legend.
        measure: says which accuracy this is, and of which images.

    Raises:
        RunError: another suffix, nothing to draw, values that do not fit, or the picture cannot be written.
    """
    out = style.check_out(out)
    return series.save(_figure(rows, measure=measure), out)


def describe_stages(rows: list[dict], *, ratio: float) -> dict:
    """Compare every stage with the uniform network at equal multiply-adds, in numbers and in words.

    At each point of a stage's curve the uniform curve of the same seed is interpolated linearly, inside its own range only.
    The full network, which the uniform curve ends in, is left out. A seed without both curves is not counted.

    Args:
        rows: as for `draw_stages`.
        ratio: what a slimmed stage keeps of the width that the others have.

    Returns:
        stages: `{stage: {"mean", "lowest", "highest", "seeds", "points"}}`, mean differences of accuracy to the uniform
            network (stage minus uniform, from -1 to 1): their mean over seeds and the lowest and highest seed. None stands
            for a stage that shares no range of multiply-adds with the uniform network.
        cheapest, dearest: the stages with the highest and the lowest mean, None where no two stages can be compared.
        settled: False where the range of seeds of another stage meets that of the cheapest or the dearest; None with one seed.
        words: what this says, in one or two sentences.

    Raises:
        RunError: there is no row or no uniform network, or values do not fit.
    """
    stages = _stages(rows)
    uniform = stages.pop(UNIFORM, None)
    if uniform is None:
        raise RunError(f"there is no uniform network to compare with; add rows of stage {UNIFORM!r}")
    found = {stage: _against_uniform(points, uniform) for stage, points in stages.items()}
    known = sorted((stage for stage in found if found[stage]), key=lambda stage: -found[stage]["mean"])
    report = {"stages": found, "cheapest": None, "dearest": None, "settled": None}
    if len(known) > 1:
        report |= {"cheapest": known[0], "dearest": known[-1]}
        if min(found[stage]["seeds"] for stage in known) > 1:
            report["settled"] = not any(_rivals(found, end) for end in (known[0], known[-1]))
    return report | {"words": _words(report, known, f" to {ratio:g} of the width of the others")}


def _stages(rows) -> dict[str, list[dict]]:
    rows = series.check_rows(rows, _KEYS, "network")
    series.check_repeats(rows, ("stage", "ratio", "seed"))
    stages: dict[str, list[dict]] = {}
    for row in rows:
        stages.setdefault(str(row["stage"]), []).append(row)
    return stages


def _against_uniform(points: list[dict], uniform: list[dict]) -> dict | None:
    """Return the mean difference of each seed, summed up; None where no seed shares a range."""
    full = max(row["macs"] for row in uniform)
    means, count = [], 0
    for seed in sorted({row["seed"] for row in points}):
        curve = [
            (macs, sum(values) / len(values)) for macs, values in series.over_seeds(row for row in uniform if row["seed"] == seed)
        ]
        own = [row for row in points if row["seed"] == seed and row["macs"] != full]
        shared = [row for row in own if curve and curve[0][0] <= row["macs"] <= curve[-1][0]]
        if shared:
            means.append(sum(row["accuracy"] - _interpolate(curve, row["macs"]) for row in shared) / len(shared))
            count += len(shared)
    if not means:
        return None
    mean = sum(means) / len(means)
    return {"mean": mean, "lowest": min(means), "highest": max(means), "seeds": len(means), "points": count}


def _interpolate(curve: list[tuple[float, float]], x: float) -> float:
    for (left, low), (right, high) in zip(curve, curve[1:]):
        if left <= x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return curve[0][1]  # a curve of one point


def _rivals(found: dict, stage: str) -> list[str]:
    """Return the stages whose range of seeds meets that of this one."""
    own = found[stage]
    others = [(name, entry) for name, entry in found.items() if entry and name != stage]
    return [name for name, entry in others if entry["lowest"] <= own["highest"] and entry["highest"] >= own["lowest"]]


def _words(report: dict, known: list[str], ratios: str) -> str:
    found, (cheapest, dearest) = report["stages"], (report["cheapest"], report["dearest"])
    lost = [stage for stage in found if not found[stage]]
    without = ""
    if lost:
        names, has = _listed(lost, "and"), "shares" if len(lost) == 1 else "share"
        without = f" {names[0].upper()}{names[1:]} {has} no range of multiply-adds with the uniform network."
    if not known:
        return (
            "No stage shares a range of multiply-adds with the uniform network apart from the full network, so none can be "
            "compared; measure uniform networks at more ratios."
        )
    if cheapest is None:
        only = known[0]
        text = f"Slimmed alone{ratios}, {_name(only)} reaches on average {_points(found[only]['mean'])} the uniform network "
        return f"{text}at equal multiply-adds; there is no other stage to compare it with.{without}"
    text = (
        f"Slimmed alone{ratios}, {_name(cheapest)} is the cheapest (on average {_points(found[cheapest]['mean'])} the uniform "
        f"network at equal multiply-adds) and {_name(dearest)} the dearest ({_points(found[dearest]['mean'])} it)"
    )
    if report["settled"] is None:
        return f"{text}; a single seed does not tell how much of this is chance.{without}"
    if report["settled"]:
        return f"{text}.{without}"
    close = {end: _rivals(found, end) for end in (cheapest, dearest)}
    if close[dearest] == [cheapest]:
        close[dearest] = []  # the pair is already named
    parts = [f"{_name(end)} from {_listed(rivals)}" for end, rivals in close.items() if rivals]
    return f"{text}. This order is not settled: the range of the seeds does not tell {' nor '.join(parts)}.{without}"


def _name(stage: str) -> str:
    return stage if any(letter.isalpha() for letter in stage) else f"stage {stage}"


def _listed(stages: list[str], word: str = "or") -> str:
    names = [_name(stage) for stage in stages]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def _points(difference: float) -> str:
    side = "above" if difference >= 0 else "below"
    amount = f"{100 * abs(difference):.1f}"
    return f"{amount} point {side}" if amount == "1.0" else f"{amount} points {side}"


def _figure(rows, *, measure="top-1 accuracy") -> Figure:
    stages = _stages(rows)
    scale, letter = style.macs_unit([row["macs"] for points in stages.values() for row in points])
    uniform = stages.pop(UNIFORM, None)
    figure = style.new_figure(8.2, 4.6)
    axes = figure.subplots()
    curves = [(series.name(_name(stage)), points, looks) for (stage, points), looks in zip(
        stages.items(), series.ordered_looks(len(stages), start=1)
    )]  # fmt: skip
    drawn, counts = [], []
    if uniform:
        curves.insert(0, ("uniform (all stages)", uniform, _FIRM))
    for label, points, looks in curves:
        firm = looks is _FIRM
        scaled = series.over_seeds([{**row, "macs": row["macs"] / scale} for row in points])
        drawn += series.draw_mean(
            axes, scaled, looks, label=label, linewidth=3 if firm else 1.6, markersize=8 if firm else 5.5,
            zorder=3 if firm else 4, markeredgecolor="white", markeredgewidth=0.7,
        )  # fmt: skip
        counts += [seeds for _, seeds in scaled]
    series.percent_axes(axes, letter)
    axes.set_ylabel(f"{style.literal(measure)} (%)", fontsize=style.NORMAL)
    series.legend_beside(axes, drawn, title="Slimmed stage")
    if notes := series.seeds_note(counts):
        series.legend_beside(axes, notes, place="lower left")
    note = ""
    if uniform and stages:
        note = _frame(axes, [row for points in stages.values() for row in points], uniform, scale)
    if note:
        note = f"; the line of the uniform network goes on to {note}{letter}"
    series.head_and_foot(figure, None, series.FOOT + note)
    return figure


def _frame(axes: Axes, points: list[dict], uniform: list[dict], scale: float) -> str:
    """Show the range of the stages; the uniform curve may leave the axes, and where it ends is returned in words."""
    curve = [(macs, sum(seeds) / len(seeds)) for macs, seeds in series.over_seeds(uniform)]
    full = curve[-1][0]
    least = min(row["macs"] for row in points)
    left = least - 0.1 * (max(full, max(row["macs"] for row in points)) - least)
    hidden = [(macs, accuracy) for macs, accuracy in curve if macs < left]
    if least >= full or not hidden:
        return ""
    inside = [(macs, accuracy) for macs, accuracy in curve if macs >= left] + [(left, _interpolate(curve, left))]
    values = [row["accuracy"] for row in points] + [accuracy for _, accuracy in inside]
    low, high = 100 * min(values), 100 * max(values)
    pad = 0.07 * max(high - low, 0.4)
    axes.set_ylim(low - pad, high + pad)
    axes.set_xlim(left / scale, axes.get_xlim()[1] - 0.04 * (left - curve[0][0]) / scale)
    macs, accuracy = hidden[0]
    return f"{100 * accuracy:.1f} % at {macs / scale:.3g}"
