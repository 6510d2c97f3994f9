"""The measured figures: a panel for each set, one file for each figure and penalty, as PNG and SVG."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.paper import intervals, stated
from benchmarks.paper.orders import METHODS
from benchmarks.paper.store import Key, Store
from benchmarks.paper.tables import SHOWN, pairs_of_features

INK, MUTED, BLUE, ORANGE = "#222222", "#6b6b6b", "#0b6aa8", "#c4510c"
COLOURS = (INK, BLUE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", ORANGE, "#999999")
MARKS = ("o", "s", "^", "v", "D", "P", "X", ".")
SETTINGS = {
    **{name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith(("backend", "webagg"))},
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "paper",
}
Panel = tuple[str, Callable[[Axes], None]]


def sheet(path: Path, title: str, panels: list[Panel], legend: bool = False) -> list[Path]:
    """Draw panels side by side, up to four in a row; nothing where there are none."""
    if not panels:
        return []
    across = min(4, len(panels))
    down = math.ceil(len(panels) / across)
    width, height = max(3.1 * across, 5.0), 2.6 * down + (1.1 if legend else 0.6)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for axis, (name, draw) in zip(axes, panels, strict=False):
            draw(axis)
            axis.set_title(name)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        if legend:
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8 if across > 2 else 4))
        path.parent.mkdir(parents=True, exist_ok=True)
        written = [path.with_suffix(".png"), path.with_suffix(".svg")]
        figure.savefig(written[0], dpi=100)
        figure.savefig(written[1], metadata={"Date": None})
    return written


def titled(store: Store, key: Key) -> str:
    return f"{key.set}, l2 = {store.settings(key)['l2']:g}"


def panels_of(
    store: Store, experiment: str, penalty: str, draw: Callable[[Axes, dict[str, Any], Key], None]
) -> list[Panel]:
    out: list[Panel] = []
    for key, result in store.every(experiment):
        if key.penalty == penalty and key.seed == 0:
            out.append((titled(store, key), lambda axis, result=result, key=key: draw(axis, result, key)))
    return out


def figure_2(axis: Axes, result: dict[str, Any], key: Key) -> None:
    """Draw the mean change of probability toward the flip."""
    for name, colour, mark in zip(METHODS, COLOURS, MARKS, strict=True):
        moved = np.asarray(result["moved"][name], dtype=float).mean(axis=0)
        wide = 2.2 if name == METHODS[0] else 1.2
        shown = f"{name} (published)" if name == "ip-relabel" else name
        axis.plot(result["ks"], moved, color=colour, marker=mark, markersize=4, linewidth=wide, label=shown)
    axis.set_xscale("log")
    axis.set_xlabel("labels changed")
    axis.set_ylabel("change of probability")


def figure_3(axis: Axes, result: dict[str, Any], key: Key) -> None:
    """Draw how k / N is distributed."""
    percent = 100.0 * intervals.present(result["k"]) / result["rows"]
    if not len(percent):
        return
    low = max(percent.min(), 1e-4)
    edges = np.geomspace(low * 0.95, max(percent.max(), 100 * stated.FRAGILE) * 1.1, 28)
    axis.hist(percent, bins=edges, color=BLUE, weights=np.full(len(percent), 1.0 / len(percent)))
    axis.axvline(100 * stated.FRAGILE, color=ORANGE, linewidth=1.4)
    below = (percent < 100 * stated.FRAGILE).mean()
    axis.text(0.03, 0.95, f"{below:.1%} under 2 %", transform=axis.transAxes, va="top", color=ORANGE)
    axis.set_ylim(0, 1.2 * axis.get_ylim()[1])  # room for the line of text
    axis.set_xscale("log")
    axis.set_xlabel("k, % of the training labels")
    axis.set_ylabel("share of predictions")


def figure_5(axis: Axes, result: dict[str, Any], key: Key) -> None:
    """Draw k against the predicted probability."""
    k = np.array([np.nan if one is None else one for one in result["k"]], dtype=float)
    right = np.array([bool(one) for one in result["correct"]])
    probability = np.asarray(result["probability"])
    for chosen, colour, mark, name in ((right, BLUE, "o", "right"), (~right, ORANGE, "x", "wrong")):
        axis.scatter(probability[chosen], k[chosen], s=9, color=colour, marker=mark, alpha=0.6, linewidths=0.8,
                     label=f"predicted {name}")  # fmt: skip
    axis.set_yscale("log")
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel("predicted probability of class 1")
    axis.set_ylabel("k")


def figure_6(axis: Axes, result: dict[str, Any], key: Key) -> None:
    """Draw k, as a share of k without noise, and accuracy, by noise ratio."""
    table = result["coin"]
    noise, k = table["noise"], np.asarray(table["k_mean"], dtype=float)
    band = [np.asarray(table[name], dtype=float) / k[0] for name in ("k_low", "k_high")]
    axis.plot(noise, k / k[0], color=BLUE, marker="o", markersize=3.5, label="mean k, share of k without noise")
    axis.fill_between(noise, *band, color=BLUE, alpha=0.18, linewidth=0)
    axis.plot(noise, table["accuracy"], color=ORANGE, marker="s", markersize=3.5, label="accuracy on the test set")
    low, high = (np.asarray(table[name], dtype=float) for name in ("accuracy_low", "accuracy_high"))
    axis.fill_between(noise, low, high, color=ORANGE, alpha=0.18, linewidth=0)
    axis.set_ylim(0, None)
    axis.set_xlabel("share of labels replaced by coin tosses")


def figure_4(first: str, second: str, k: np.ndarray) -> Callable[[Axes], None]:
    """Draw k under two sets of features, a point for each test row."""

    def draw(axis: Axes) -> None:
        axis.scatter(*k, s=9, color=BLUE, alpha=0.5, linewidths=0)
        ends = [k.min() * 0.9, k.max() * 1.1]
        axis.plot(ends, ends, color=MUTED, linewidth=1)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel(f"k, {first}")
        axis.set_ylabel(f"k, {second}")

    return draw


def draw_all(store: Store, folder: Path) -> list[Path]:
    """Draw every figure whose results are there; return the files."""
    written: list[Path] = []
    for penalty, shown in SHOWN.items():
        at = f"at the {shown} penalty"
        for name, experiment, draw, title, legend in (
            ("figure-2", "orders", figure_2, f"Figure 2: relabelling the first rows of each order, {at}", True),
            ("figure-3-7-9", "k", figure_3, f"Figures 3, 7, 9: how k is distributed, {at}", False),
            ("figure-5-8-10", "k", figure_5, f"Figures 5, 8, 10: k against predicted probability, {at}", True),
            ("figure-6", "noise-curve", figure_6, f"Figure 6: k and accuracy as noise grows, {at}", True),
        ):
            written += sheet(folder / f"{name}-{penalty}", title, panels_of(store, experiment, penalty, draw), legend)
        pairs = pairs_of_features(store, penalty)
        panels = [(f"{a} and {b}", figure_4(a, b, k)) for a, b, k in pairs]
        written += sheet(folder / f"figure-4-{penalty}", f"Figure 4: k under two sets of features, {at}", panels)
    return written
