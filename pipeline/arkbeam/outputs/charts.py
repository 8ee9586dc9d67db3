"""Charts as SVG, by matplotlib. Colours are variables of the page's style, so that a chart follows light and dark.

A chart has no text of rows: fonts may lack its characters. The same figures give the same bytes.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Colours that stand for a variable of the style; they are replaced in the SVG.
INK, LINE = "#0a0b01", "#0a0b02"
COLOURS = ("#0a0b03", "#0a0b04", "#0a0b05")
LIMIT = "#0a0b06"
_VARIABLES = {INK: "ink", LINE: "line", COLOURS[0]: "c1", COLOURS[1]: "c2", COLOURS[2]: "c3", LIMIT: "limit"}
_SIZE_IN = (4.6, 2.4)
_MARGINS = {"left": 0.165, "right": 0.975, "bottom": 0.215, "top": 0.87}  # a layout by matplotlib takes twice the time
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
}
_PROLOGUE = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>\s*", re.DOTALL)
_SHEET = re.compile(r"<style type=\"text/css\">.*?</style>", re.DOTALL)
_GROUP_ID = re.compile(r"<g id=\"[^\"]*\"")
_SIZE = re.compile(r"(<svg[^>]*?) width=\"[^\"]*\" height=\"[^\"]*\"")
_FONT = re.compile(r"font: ([0-9.]+px) [^;\"]*|font-family: [^;\"]*; ")


@dataclass(frozen=True, slots=True)
class Layer:
    """One set of values of a chart, with its name in the legend; nan: no value there."""

    name: str
    values: Sequence[float]


def draw_steps(
    name: str, edges: Sequence[float], layers: Sequence[Layer], x: str, y: str, limit: tuple[str, float] | None = None
) -> str:
    """Draw values between edges as filled steps, the layers on top of each other; `limit`: a line, with its name.

    `name` makes the ids in the SVG different from those of other charts of the page.
    """
    figure, axes = _start(x, y)
    layers = [layer for layer in layers if any(layer.values)] or layers[:1]
    base = np.zeros(len(edges) - 1)
    for layer, colour in zip(layers, COLOURS, strict=False):
        top = base + np.asarray(layer.values, float)
        axes.stairs(top, edges, baseline=base, fill=True, color=colour, label=layer.name)
        base = top
    if limit is not None:
        axes.axhline(limit[1], color=LIMIT, linewidth=1.2, linestyle="--", label=limit[0])
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    return _finish(name, figure, axes, legend=len(layers) > 1 or limit is not None)


def draw_lines(name: str, edges: Sequence[float], layers: Sequence[Layer], x: str, y: str) -> str:
    """Draw values between edges as lines through the middles; where a value is missing, the line has a gap."""
    figure, axes = _start(x, y)
    middles = (np.asarray(edges[:-1]) + np.asarray(edges[1:])) / 2
    dots = "o" if len(middles) < 30 else ""
    for layer, colour, dash in zip(layers, COLOURS, ("-", "--", ":"), strict=False):
        axes.plot(
            middles, layer.values, dash, color=colour, label=layer.name, linewidth=1.4, marker=dots, markersize=2.5
        )
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    return _finish(name, figure, axes, legend=len(layers) > 1)


def _start(x: str, y: str) -> tuple[Figure, Axes]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE_IN)
        figure.subplots_adjust(**_MARGINS)
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_short(value)))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        return figure, axes


def _finish(name: str, figure: Figure, axes: Axes, *, legend: bool) -> str:
    buffer = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": f"arkbeam {name}"}):
        if legend:
            figure.legend(loc="upper left", bbox_to_anchor=(0, 1.02), ncols=4, handlelength=1.4, columnspacing=1)
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    for pattern, new in ((_PROLOGUE, ""), (_METADATA, ""), (_SHEET, ""), (_GROUP_ID, "<g"), (_SIZE, r"\1")):
        svg = pattern.sub(new, svg)
    svg = _FONT.sub(lambda found: f"font-size: {found[1]}" if found[1] else "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg


def format_short(value: float) -> str:
    """Format a number of an axis: 1,500, 20k, 1.2M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{value / scale:.3g}{unit}"
    return f"{value:,.4g}"
