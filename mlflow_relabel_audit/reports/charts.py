"""Charts as inline SVG: drawn by matplotlib, then stripped to what a page needs.

The colours written here are stand-ins that become CSS variables, so that one picture serves light and dark.
Ids, namespaces, metadata and fonts go: several charts share a page, and the page's own font is used.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from numpy.typing import ArrayLike, NDArray

INK, MUTED, RULE, ACCENT, ALARM = "#010101", "#020202", "#030303", "#040404", "#050505"
ACCENT_SOFT, ALARM_SOFT, CALM = "#060606", "#070707", "#080808"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    ACCENT: "accent",
    ALARM: "alarm",
    ACCENT_SOFT: "accent-soft",
    ALARM_SOFT: "alarm-soft",
    CALM: "calm",
}
_WIDTH = 480
_FONT = 11.0


@dataclass(frozen=True)
class Chart:
    """One picture: the SVG element and the sentence below it."""

    svg: Markup
    caption: str


@contextmanager
def style(name: str) -> Iterator[None]:
    """Draw with matplotlib's own defaults, whatever the user's settings are, and put theirs back after."""
    kept = ("backend", "webagg")
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith(kept)}
    settings = {
        **defaults,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": _FONT,
        "text.color": INK,
        "axes.edgecolor": RULE,
        "axes.labelcolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "hatch.color": ALARM_SOFT,
        "hatch.linewidth": 1.6,
    }
    with matplotlib.rc_context(settings):
        yield


def canvas(height: int) -> tuple[Figure, Axes]:
    """Return a figure of the page's chart width, ``height`` units high, with quiet axes."""
    figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=72)
    axes = figure.add_axes((46 / _WIDTH, 40 / height, 1 - 58 / _WIDTH, 1 - 62 / height))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, bottom=False, left=False, which="both", pad=5)
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    return figure, axes


def finish(figure: Figure, name: str, title: str, description: str) -> Markup:
    """Return the figure as an SVG element that a screen reader can read out."""
    buffer = io.StringIO()
    blank = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=blank)
    body = buffer.getvalue()
    start, end = body.index("<svg"), body.rindex("</svg>")
    box = re.search(r'viewBox="([^"]+)"', body)
    assert box is not None
    body = body[body.index(">", start) + 1 : end]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</defs>", "", body, flags=re.S)
    body = re.sub(r' id="([^"]+)"', lambda m: m[0] if f"#{m[1]}" in body else "", body)
    body = re.sub(r'( (?:d|x|y|transform)=")([^"]*)"', lambda m: m[1] + _shorter(m[2]) + '"', body)
    body = re.sub(r"M ?([\d.-]+ [\d.-]+) ?L ?\1(?= |\")", r"M\1h0", body)
    body = re.sub(r"font(-family|-stretch|-style|-variant|-weight)?: ?([^;\"]*)", _font, body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r"<g>\s*</g>", "", re.sub(r"\n\s*", "\n", body)).strip()
    head = Markup(
        '<svg class="chart" role="img" viewBox="{}" aria-labelledby="{}-title {}-desc">'
        '<title id="{}-title">{}</title><desc id="{}-desc">{}</desc>'
    ).format(box[1], name, name, name, title, name, description)
    # matplotlib escapes the texts it draws
    return head + Markup(body) + Markup("</svg>")


def _shorter(values: str) -> str:
    """Round coordinates to a tenth of a unit; matplotlib writes six digits."""
    values = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), values)
    return re.sub(r"\s+", " ", values.strip())


def _font(match: re.Match[str]) -> str:
    """Keep a font's size and weight, drop its family: the page's own is used."""
    if match[1] == "-weight":
        return match[0]
    size = re.search(r"[\d.]+px", match[2]) if match[1] is None else None
    bold = "font-weight: bold; " if match[1] is None and "bold" in match[2] else ""
    return f"{bold}font-size: {size[0]}" if size else "font-style: normal"


def dots(axes: Axes, x: ArrayLike, y: ArrayLike, colour: str, size: float = 4.5) -> None:
    """Draw points as ONE path of round-capped strokes of no length: a thousand take 20 kB, not 120."""
    points = _places(axes, x, y)
    if not len(points):
        return
    vertices = np.repeat(points, 2, axis=0)
    codes = np.tile([Path.MOVETO, Path.LINETO], len(points))
    path = Path(vertices, codes)
    path.should_simplify = False
    patch = PathPatch(path, fill=False, edgecolor=colour, linewidth=size, capstyle="round", alpha=0.75)
    patch.set_transform(matplotlib.transforms.IdentityTransform())
    patch.set_clip_on(False)
    axes.add_artist(patch)
    patch.set_clip_path(None)


def diamonds(axes: Axes, x: ArrayLike, y: ArrayLike, colour: str, size: float = 3.2) -> None:
    """Draw points as diamonds, one path for all: another shape, not only another colour."""
    points = _places(axes, x, y)
    if not len(points):
        return
    corner = size * np.array([[0, 1], [1, 0], [0, -1], [-1, 0], [0, 1]])
    vertices = (points[:, None, :] + corner[None]).reshape(-1, 2)
    codes = np.tile([Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY], len(points))
    path = Path(vertices, codes)
    path.should_simplify = False
    patch = PathPatch(path, facecolor=colour, edgecolor="none", alpha=0.85)
    patch.set_transform(matplotlib.transforms.IdentityTransform())
    axes.add_artist(patch)
    patch.set_clip_path(None)


def _places(axes: Axes, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Return where points stand on the picture, each place once; on a coarser grid where they are many."""
    points: NDArray[np.float64] = axes.transData.transform(np.column_stack([np.asarray(x), np.asarray(y)]))
    step = 0.5 if len(points) <= 3000 else 2.0
    return np.unique(np.round(points / step) * step, axis=0)


def note(axes: Axes, x: float, y: float, words: str, colour: str = MUTED, y_offset: float = 0.0, **kwargs: Any) -> None:
    """Write ``words`` at data coordinates, ``y_offset`` units higher; dollar signs are no formulas."""
    axes.annotate(
        words,
        (x, y),
        xytext=(0, y_offset),
        textcoords="offset points",
        color=colour,
        parse_math=False,
        annotation_clip=False,
        **kwargs,
    )


def count_ticks(low: float, high: float) -> list[int]:
    """Return round whole numbers (1, 2, 5, 10, ...) that lie in ``[low, high]``, for a logarithmic axis."""
    ticks = [m * 10**e for e in range(10) for m in (1, 2, 5)]
    inside = [t for t in ticks if low <= t <= high]
    return inside if len(inside) <= 7 else [t for t in inside if str(t)[0] == "1"]


def apart(ticks: Sequence[float], taken: float, place: Callable[[float], float], least: float) -> list[float]:
    """Return the ticks that stand at least ``least`` from ``taken`` and from each other on the axis."""
    kept: list[float] = []
    for tick in sorted(ticks, key=lambda t: abs(place(t) - place(taken))):
        if all(abs(place(tick) - place(other)) >= least for other in (taken, *kept)):
            kept.append(tick)
    return kept
