"""The pictures of the pages, each from plain arrays, each with a caption that says what to see."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from mlflow_relabel_audit.reports import charts, text
from mlflow_relabel_audit.reports.charts import ACCENT, ALARM, ALARM_SOFT, INK, MUTED, RULE, Chart

Floats = NDArray[np.float64]

FEW = 0.02
"""Fewer than this share of the labels is called few."""

EDGE = 1e-5
"""Predictions nearer to certainty than this are drawn at the edge."""

CONFIDENT, FRAGILE = 0.9, 0.01
"""Probability beyond which a prediction is confident; share of labels below which it is fragile."""


def k_distribution(k: Floats, n_train: int, estimated: bool) -> Chart:
    """Draw how many predictions need how many labels; the bars below 2 % of the labels are hatched."""
    few = math.ceil(FEW * n_train) - 0.5
    edges, logarithmic = _k_edges(k, few)
    with charts.style("k-distribution"):
        figure, axes = charts.canvas(220)
        heights, _ = np.histogram(k, edges)
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(charts.count_ticks(edges[0], edges[-1])))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
        axes.grid(axis="y", color=RULE, linewidth=0.7)
        axes.set_axisbelow(True)
        low = edges[1:] <= few
        for chosen, colour, hatch in ((low, ALARM, "////"), (~low, ACCENT, None)):
            drawn = chosen & (heights > 0)
            axes.bar(
                edges[:-1][drawn],
                heights[drawn],
                0.94 * np.diff(edges)[drawn],
                align="edge",
                facecolor=colour,
                edgecolor=ALARM_SOFT,
                hatch=hatch,
                linewidth=0,
            )
        axes.set_xlim(edges[0], edges[-1])
        top = max(1, int(heights.max())) * 1.2
        axes.set_ylim(0, top)
        median = float(np.median(k))
        axes.plot([median, median], [0, top * 0.93], color=INK, linewidth=1, clip_on=False)
        position = axes.transAxes.inverted().transform(axes.transData.transform((median, 0)))[0]
        side = "left" if position < 0.6 else "right"
        charts.note(axes, median, top * 0.96, f" median {text.count(median)} ", INK, ha=side, va="center")
        axes.set_xlabel("labels that would have to be different", labelpad=5)
        charts.note(axes, edges[0], top * 1.06, "predictions", ha="left", va="bottom")
        svg = charts.finish(
            figure,
            "k-distribution",
            "How many labels each prediction needs to flip",
            f"Histogram over {text.plural(len(k), 'prediction')}. Smallest {text.count(k.min())}, median "
            f"{text.count(median)}, largest {text.count(k.max())} labels.",
        )
    below = int((k <= few).sum())
    what = "estimated number of labels" if estimated else "number of labels"
    caption = f"Each prediction by the {what} that flips it."
    if below:
        caption += f" Hatched: fewer than 2 % of the {n_train:,} labels ({text.plural(below, 'prediction')})."
    return Chart(svg, caption)


def _k_edges(k: Floats, few: float) -> tuple[Floats, bool]:
    """Return bin edges on half-integers, one of them at ``few``, and whether the axis is logarithmic."""
    low, high = float(k.min()), float(k.max())
    if high <= 24:
        return np.arange(0.5, high + 1), False
    if high <= 8 * low:
        width = max(1, math.ceil((high - low) / 20))
        first = few - width * math.ceil((few - low + 0.5) / width)
        edges = np.arange(first, high + width, width)
        return (edges if edges[-1] > high else np.append(edges, edges[-1] + width)), False
    ratio = max((high / low) ** (1 / 24), 1.05)
    few = max(few, 0.5)
    first = math.floor(math.log(max(low - 0.5, 0.5) / few, ratio))
    steps = np.arange(first, math.ceil(math.log((high + 1) / few, ratio)) + 1)
    edges = np.unique(np.floor(few * ratio**steps) + 0.5)
    edges = edges[edges >= 0.5]
    if edges[0] > low:
        edges = np.append(low - 0.5, edges)
    return edges, True


def k_against_confidence(confidence: Floats, k: Floats, n_train: int, whose: str = "likelier") -> Chart:
    """Draw labels needed against the likelier class's probability, the confident-but-fragile corner marked.

    Parameters
    ----------
    confidence : ndarray (T,)
        Probability of the likelier class.
    k : ndarray (T,)
        Labels needed, all finite.
    whose : str
        What the axis calls that class: of several it is the predicted one.
    """
    within = np.clip(confidence, EDGE, 1 - EDGE)
    odds = np.log(within) - np.log1p(-within)
    limit = FRAGILE * n_train
    corner = (confidence > CONFIDENT) & (k < limit)
    inside = int(corner.sum())
    with charts.style("k-confidence"):
        figure, axes = charts.canvas(260)
        left = min(float(odds.min()), 0.0) - 0.12
        right = max(float(odds.max()), math.log(0.95 / 0.05)) + 0.12
        bottom, top = min(0.85, float(k.min())) * 0.95, max(float(k.max()), limit, 2.0) * 1.3
        axes.set_yscale("log")
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        values = [v for v in (0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999) if left <= logit(v) <= right]
        axes.xaxis.set_major_locator(FixedLocator([logit(v) for v in values]))
        names = [f"{v:g}" for v in values]
        axes.xaxis.set_major_formatter(FuncFormatter(lambda _, at: names[at] if at is not None else ""))
        axes.yaxis.set_major_locator(FixedLocator(charts.count_ticks(bottom, top)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        axes.grid(axis="y", color=RULE, linewidth=0.7)
        axes.set_axisbelow(True)
        start = logit(CONFIDENT)
        if limit > bottom:
            corners = [start, right, right, start], [bottom, bottom, limit, limit]
            axes.fill(*corners, facecolor=ALARM_SOFT, linewidth=0, zorder=0)
            border = [start, start, right], [bottom, limit, limit]
            axes.plot(*border, color=ALARM, linewidth=1, linestyle=(0, (3, 2)))
        charts.dots(axes, odds[~corner], k[~corner], ACCENT, 4.2 if len(k) < 2000 else 3.0)
        charts.diamonds(axes, odds[corner], k[corner], ALARM)
        if limit > bottom:
            charts.note(axes, right, limit * 1.06, "confident but fragile", ALARM, ha="right", va="bottom")
        axes.set_xlabel(f"probability of the {whose} class", labelpad=5)
        charts.note(axes, left, top * 1.08, "labels needed", ha="left", va="bottom")
        svg = charts.finish(
            figure,
            "k-confidence",
            "Labels needed against the model's probability",
            f"Scatter of {text.plural(len(k), 'prediction')}; {inside} lie in the corner of probability "
            "above 0.9 and fewer than 1 % of the labels.",
        )
    sure = "more than 90\N{NO-BREAK SPACE}% sure"
    few = f"fewer than 1\N{NO-BREAK SPACE}% of the {n_train:,} labels"
    if inside:
        predictions = text.plural(inside, "prediction")
        caption = f"Each mark is a prediction. Diamonds: {sure}, yet {few} decide it ({predictions})."
    else:
        caption = f"Each mark is a prediction. None is {sure} while {few} decide it."
    if (confidence > 1 - EDGE).any():
        caption += " Those at the right edge are surer than 0.99999."
    return Chart(svg, caption)


def label_path(probability: Floats, after: float, threshold: float, names: tuple[str, ...]) -> Chart:
    """Draw the probability as one label after another is changed, strongest first, up to the threshold.

    Parameters
    ----------
    probability : ndarray (k + 1,)
        Of the positive class: before, then after each label, to first order.
    after : float
        The same by the refitted model, with all k labels changed; NaN where it was not refitted.
    threshold : float
    names : tuple of str
        The negative and the positive class.
    """

    def height(p: float) -> float:
        return logit(min(max(p, 1e-9), 1 - 1e-9))

    def ticks(low: float, high: float) -> dict[float, str]:
        values = [v for v in _PROBABILITIES if low <= logit(v) <= high]
        values = [threshold, *charts.apart(values, threshold, logit, (high - low) / 7)]
        return {logit(v): f"{v:.5g}" for v in values}

    heights, goal = np.array([height(p) for p in probability]), height(threshold)
    svg = _path(
        heights,
        height(after) if np.isfinite(after) else after,
        goal,
        ticks,
        names[0] if heights[0] >= goal else names[1],
        ("The probability", f"probability of {text.visible(names[1], 40)}"),
        f"From {text.probability(probability[0])} to {text.probability(probability[-1])} after "
        f"{text.plural(len(heights) - 1, 'label')}, to first order; the threshold is {threshold:g}.",
    )
    return Chart(
        svg, "Line: each label's effect alone, added up. Dashed: the threshold." + _refit(after, text.probability)
    )


def margin_path(margin: Floats, after: float, names: tuple[str, str]) -> Chart:
    """Draw by how much one class leads another as one label after another is changed, strongest first.

    Parameters
    ----------
    margin : ndarray (k + 1,)
        Before, then after each label, to first order.
    after : float
        The same by the refitted model, with all k labels changed; NaN where it was not refitted.
    names : tuple of str
        The class predicted, and the one it is to flip to.
    """

    def ticks(low: float, high: float) -> dict[float, str]:
        return {float(v): text.number(v, 1) for v in MaxNLocator(nbins=6).tick_values(low, high) if low <= v <= high}

    first, second = (text.visible(name, 24) for name in names)
    svg = _path(
        margin,
        after,
        0.0,
        ticks,
        names[1],
        ("The lead", f"lead of {first} over {second} (log-odds)"),
        f"From {text.number(margin[0])} to {text.number(margin[-1])} after "
        f"{text.plural(len(margin) - 1, 'label')}, to first order.",
    )
    caption = f"Line: each label's effect alone, added up. Below the dashed line {second} is ahead of {first}."
    return Chart(svg, caption + _refit(after, text.number))


def _refit(after: float, written: Callable[[float], str]) -> str:
    """Return what the caption says of the refitted model."""
    if not np.isfinite(after):
        return ""
    refit = f"the model refitted with all of them changed ({written(after)})"
    return f" Diamond: {refit}; its distance from the line is what adding up overlooks."


def _path(
    heights: Floats,
    end: float,
    goal: float,
    ticks: Callable[[float, float], dict[float, str]],
    other: str,
    names: tuple[str, str],
    description: str,
) -> Markup:
    """Draw what is reached after each label, the dashed goal, and where the refitted model ends."""
    steps = np.arange(len(heights))
    with charts.style("label-path"):
        figure, axes = charts.canvas(220)
        low, high = min(heights.min(), goal), max(heights.max(), goal)
        if np.isfinite(end):
            low, high = min(low, end), max(high, end)
        room = 0.16 * max(high - low, 0.5)
        axes.set_ylim(low - room, high + room)
        axes.set_xlim(-0.02 * len(heights), (len(heights) - 1) * 1.04)
        marks = ticks(low - room, high + room)
        axes.yaxis.set_major_locator(FixedLocator(list(marks)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: marks.get(v, "")))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        axes.grid(axis="y", color=RULE, linewidth=0.7)
        axes.axhline(goal, color=INK, linewidth=1, linestyle=(0, (3, 2)))
        axes.plot(steps, heights, color=ACCENT, linewidth=1.8, clip_on=False)
        if len(steps) <= 60:
            charts.dots(axes, steps, heights, ACCENT, 5)
        if np.isfinite(end):
            charts.diamonds(axes, steps[-1:], np.array([end]), ALARM, 5)
        side = ("below", "top", -1) if heights[0] >= goal else ("from here up", "bottom", 1)
        words = f"{text.visible(other, 24)} {side[0]}"
        charts.note(axes, 0, goal + side[2] * 0.2 * room, words, INK, va=side[1])
        axes.set_xlabel("labels changed, strongest first", labelpad=5)
        charts.note(axes, axes.get_xlim()[0], high + room * 1.15, names[1], va="bottom")
        title = f"{names[0]} as labels are changed one after another"
        return charts.finish(figure, "label-path", title, description)


def review_yield(score: Floats, shown: int) -> Chart:
    """Draw how many wrong labels a reviewer expects to have found after so many rows, likeliest first.

    Parameters
    ----------
    score : ndarray (N,)
        Probability that each label is wrong.
    shown : int
        Rows on the horizontal axis.
    """
    found = np.concatenate([[0.0], np.cumsum(np.sort(score)[::-1][:shown])])
    rows = np.arange(len(found))
    step = max(1, len(rows) // 200)
    with charts.style("review-yield"):
        figure, axes = charts.canvas(210)
        axes.set_xlim(0, len(rows) - 1)
        axes.set_ylim(0, max(float(found[-1]) * 1.08, 1.0))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        axes.grid(axis="y", color=RULE, linewidth=0.7)
        chance = [0, float(score.mean()) * (len(rows) - 1)]
        axes.plot([0, len(rows) - 1], chance, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
        charts.note(axes, len(rows) - 1, chance[1], "in random order", MUTED, ha="right", va="bottom")
        axes.plot(np.append(rows[::step], rows[-1]), np.append(found[::step], found[-1]), color=ACCENT, linewidth=2)
        axes.set_xlabel("labels reviewed, likeliest wrong first", labelpad=5)
        charts.note(axes, 0, axes.get_ylim()[1] * 1.05, "wrong labels expected among them", va="bottom")
        svg = charts.finish(
            figure,
            "review-yield",
            "Wrong labels expected among the labels reviewed",
            f"After {text.plural(len(rows) - 1, 'label')} about {found[-1]:,.0f} wrong ones are expected.",
        )
    return Chart(svg, "The steeper the line, the more each reviewed label is worth.")


def k_against_k(first: Floats, second: Floats, differ: Any, names: tuple[str, str], number: int = 0) -> Chart:
    """Draw two models' k of the same rows against each other; on the diagonal they are equally robust.

    Parameters
    ----------
    first, second : ndarray (n,)
        Labels needed, all finite.
    differ : ndarray (n,) of bool
        Where the two models decide differently.
    number : int
        Tells the picture's ids from those of others of its kind.
    """
    name = f"k-by-k-{number}"
    a, b = (text.visible(n, 40) for n in names)
    with charts.style(name):
        figure, axes = charts.canvas(300)
        low, high = 0.8 * min(first.min(), second.min()), 1.25 * max(first.max(), second.max(), 2.0)
        for axis, scale, limits in (
            (axes.xaxis, axes.set_xscale, axes.set_xlim),
            (axes.yaxis, axes.set_yscale, axes.set_ylim),
        ):
            scale("log")
            limits(low, high)
            axis.set_major_locator(FixedLocator(charts.count_ticks(low, high)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        axes.grid(color=RULE, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
        charts.dots(axes, first[~differ], second[~differ], ACCENT, 4.2)
        charts.diamonds(axes, first[differ], second[differ], ALARM)
        charts.note(axes, math.sqrt(low * high), low, f"k of {a}", ha="center", va="top", y_offset=-20)
        charts.note(axes, low, high, f"k of {b}", va="bottom", y_offset=6)
        svg = charts.finish(
            figure,
            name,
            f"k of {b} against k of {a}",
            f"Scatter of {text.plural(len(first), 'row')}: {int((second > first).sum())} above the diagonal, "
            f"{int((second < first).sum())} below it.",
        )
    caption = f"Each mark is a row. Above the dashed line {b} needs more labels, below it {a}."
    if differ.any():
        caption += f" Diamonds: decided differently ({text.plural(int(differ.sum()), 'row')})."
    return Chart(svg, caption)


def injected_noise(table: pd.DataFrame) -> Chart:
    """Draw average k and accuracy, each as a share of its value without noise, as labels are replaced.

    Parameters
    ----------
    table : DataFrame
        Of the noise curve: ``noise`` and ``k_mean``, ``accuracy`` with their ``_low`` and ``_high`` ends.
    """
    noise = table["noise"].to_numpy(dtype=float)
    with charts.style("injected-noise"):
        figure, axes = charts.canvas(240)
        top = 1.0
        for name, words, colour in (("k_mean", "k", ALARM), ("accuracy", "accuracy", ACCENT)):
            low = name.replace("_mean", "_low") if name == "k_mean" else "accuracy_low"
            parts = [table[c].to_numpy(dtype=float) for c in (name, low, low.replace("_low", "_high"))]
            first = parts[0][0] if len(noise) else float("nan")
            if not np.isfinite(first) or first <= 0:
                continue
            middle, below, above = (p / first for p in parts)
            known = np.isfinite(middle)
            top = max(top, float(np.nanmax(above[known], initial=1.0)))
            around = np.append(noise[known], noise[known][::-1])
            band = np.append(below[known], above[known][::-1])
            axes.fill(around, band, facecolor=colour, alpha=0.16, linewidth=0)
            axes.plot(noise[known], middle[known], color=colour, linewidth=1.8)
            end = noise[known][-1], middle[known][-1]
            charts.note(axes, *end, words, colour, ha="right", va="bottom", y_offset=5)
        axes.set_xlim(0, max(float(noise.max()), 0.1))
        axes.set_ylim(0, top * 1.05)
        for axis, ticks in ((axes.xaxis, 6), (axes.yaxis, 5)):
            axis.set_major_locator(MaxNLocator(nbins=ticks))
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
        axes.grid(axis="y", color=RULE, linewidth=0.7)
        axes.set_xlabel("training labels replaced", labelpad=5)
        charts.note(axes, 0, top * 1.05, "of the value without noise", va="bottom", y_offset=5)
        svg = charts.finish(
            figure,
            "injected-noise",
            "Average k and accuracy as labels are replaced",
            f"Two lines over {len(noise)} levels of noise, each relative to its value without noise.",
        )
    return Chart(svg, "Average k and accuracy, each against its own value without noise; bands are 95 % intervals.")


_PROBABILITIES = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999)


def logit(p: float) -> float:
    """Return the log-odds of a probability strictly between 0 and 1."""
    return math.log(p / (1 - p))
