"""The page of a report: one file of HTML without scripts, which asks for nothing and shows values of rows as plain text.

Every value passes through the escaping of jinja2. A policy in the page forbids scripts and requests, so that a mistake here
would still run nothing.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template, select_autoescape
from markupsafe import Markup

from arkbeam.outputs.facts import Charge, Fact
from arkbeam.outputs.summary import Code, Latency

# Besides what browsers can't show: marks that change the direction of the text around them, and lone surrogates.
_ODD = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart: its title, a sentence that says what it shows, and its SVG, which is inserted as it is."""

    title: str
    remark: str
    svg: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the output as it is shown. `pictures`: data URIs. `cosine`: to the row above it; None for that row."""

    id: str
    place: str
    text: str
    kept: tuple[tuple[str, str], ...]
    pictures: tuple[str, ...]
    others: int
    cosine: float | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the map, at whole numbers from 0 to 1,000, with the text that is shown under the pointer."""

    x: int
    y: int
    title: str


@dataclass(frozen=True, slots=True)
class Map:
    """A map of rows. `groups`: their names and points."""

    method: str
    rows: int
    groups: tuple[tuple[str, tuple[Point, ...]], ...]


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that a page shows. Its sizes are bounded by those who make it."""

    title: str
    run: str
    model: str
    digest: str
    """Of the files that the page describes."""
    version: str
    tiles: tuple[Fact, ...]
    notes: tuple[Fact, ...]
    work: tuple[Fact, ...]
    charges: tuple[Charge, ...]
    pace: tuple[Fact, ...]
    pace_run: str
    """The run whose requests the charts of time show, if it is not `run`; else empty."""
    latencies: tuple[Latency, ...]
    time_charts: tuple[Chart, ...]
    codes: tuple[Code, ...]
    failures_remark: str
    folders: tuple[Fact, ...]
    vectors: tuple[Fact, ...]
    vector_charts: tuple[Chart, ...]
    map: Map | None
    examples: tuple[tuple[Row, ...], ...]
    """Rows with their nearest neighbours: the row first."""
    examples_remark: str
    sampled: str
    """What was sampled, in a sentence."""
    config: str


def render(page: Page) -> bytes:
    """Return the page in UTF-8."""
    return _template().render(page=page).encode("utf-8")


def show(value: object) -> str:
    """Return a value as text without characters that would hide or turn other text."""
    return _ODD.sub("\ufffd", str(value))


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else show(value),
    )
    environment.filters["svg"] = Markup  # our own charts
    folder = files("arkbeam.outputs")
    style = folder.joinpath("report.css").read_text("utf-8")
    environment.globals["style"] = Markup(style)
    return environment.from_string(folder.joinpath("report.html").read_text("utf-8"))
