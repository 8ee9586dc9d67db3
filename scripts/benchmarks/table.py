"""The figures of a measure, and the table that shows the figures of all measures."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rich.table import Table


class Size(StrEnum):
    """How much is measured. The targets hold for `full`; `tiny` only shows that a measure works."""

    FULL = "full"
    QUICK = "quick"
    TINY = "tiny"


@dataclass(frozen=True, slots=True)
class Bench:
    """What a measure gets: its size, an empty folder, and a function that prints its progress."""

    size: Size
    folder: Path
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `target` and `met` are empty and None if the figure has no target."""

    measure: str
    figure: str
    measured: str
    target: str = ""
    met: bool | None = None
    details: str = ""


Measure = Callable[[Bench], list[Figure]]


def at_least(measured: float, target: float) -> bool:
    """Return True if a figure is at least its target; False for NaN, a figure that can't be computed."""
    return measured >= target


def at_most(measured: float, target: float) -> bool:
    """Return True if a figure is at most its target; False for NaN, a figure that can't be computed."""
    return measured <= target


def figures_table(figures: Sequence[Figure], size: Size) -> Table:
    """Return the table of all figures."""
    table = Table(
        "measure",
        "figure",
        "target",
        "measured",
        "",
        "details",
        title=f"bench, {size.value} size",
        title_justify="left",
    )
    before = ""
    for one in figures:
        name = one.measure if one.measure != before else ""
        verdict = {None: "", True: "[green]met[/]", False: "[bold red]missed[/]"}[one.met]
        table.add_row(name, one.figure, one.target, one.measured, verdict, one.details)
        before = one.measure
    return table


def describe_machine() -> str:
    """Return what the figures depend on: cores, memory, load, versions."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    return (
        f"{usable} cores of {os.cpu_count()}, {memory_gb:.0f} GB, load at the end (1, 5, 15 minutes) {load}; "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )
