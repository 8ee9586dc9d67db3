"""The live display of a run on a terminal: one bar for each phase and each limit, and what a person may have to know."""

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from arkbeam.app.view import View
from arkbeam.base.words import format_seconds
from arkbeam.stages.meter import Phase

NAME_WIDTH, BAR_WIDTH = 12, 16


def draw(view: View, states: Sequence[str]) -> RenderableType:
    """Return the display, for terminals of 80 columns or more. `states`: what is out of the ordinary."""
    lines: list[RenderableType] = [_head(view), _bars(view)]
    if view.phase >= Phase.EMBEDDING and view.expected:
        counts = view.status.counts
        fields = [
            f"{view.cost_cny:,.4f} of about {view.cost_all_cny:,.4f} CNY",
            f"{view.status.in_flight:,} in flight",
            f"{counts.refused:,} refused",
            f"{counts.retries:,} retries",
        ]
        lines.append(_line(" · ".join(fields)))
    if view.codes:
        lines.append(_line(view.codes, "red"))
    lines += [_line(state, "yellow") for state in states]
    return Group(*lines)


def _head(view: View) -> Text:
    left = f", about {format_seconds(view.eta_s)} left" if _is_embedding(view) and math.isfinite(view.eta_s) else ""
    words = view.doing if view.is_known else "waiting for workers"
    return _line(f"{words}, {format_seconds(view.seconds)}{left}", "bold")


def _is_embedding(view: View) -> bool:
    return view.phase is Phase.EMBEDDING


def _bars(view: View) -> Table:
    work, rates, status = view.work, view.rates, view.status
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, min_width=NAME_WIDTH)
    table.add_column(no_wrap=True, min_width=BAR_WIDTH)
    table.add_column(no_wrap=True, min_width=4, justify="right")
    table.add_column(no_wrap=True, overflow="ellipsis")

    def add(name: str, done: float, total: float, words: str) -> None:
        share = min(1.0, done / total) if total else 0.0
        bar = ProgressBar(total=1.0, completed=share, width=BAR_WIDTH)
        table.add_row(name, bar, f"{share:.0%}" if total else "", words)

    about = "about " if view.phase is Phase.READING else ""
    of_rows = f" of {about}{view.rows_about:,}" if view.rows_about else ""
    reading = _speed(rates.read.per_s, view.phase is Phase.READING)
    add("rows read", work.rows_read, view.rows_about, f"{work.rows_read:,}{of_rows}{reading}")
    if work.files_found:
        add("store index", work.files_read, work.files_found, f"{work.files_read:,} of {work.files_found:,} files")
    if view.phase >= Phase.PLANNING:
        words = f"{work.rows_planned:,} of {work.rows_to_plan:,}"
        words += _speed(rates.planned.per_s, view.phase is Phase.PLANNING)
        add("rows planned", work.rows_planned, work.rows_to_plan, words)
    if view.phase >= Phase.EMBEDDING and view.expected:
        words = f"{view.settled:,} of {view.expected:,}{_speed(rates.items.per_s, _is_embedding(view))}"
        add("requests", view.settled, view.expected, words)
    if _is_embedding(view) and view.expected:
        sent, tokens = rates.sent.per_min, rates.tokens.per_min
        add("  of the RPM", sent, status.rpm, f"{sent:,.0f} of {status.rpm:,} a minute")
        add("  of the TPM", tokens, status.tpm, f"{tokens:,.0f} of {status.tpm:,} tokens a minute")
    if view.phase is Phase.PUBLISHING:
        parts = max(work.parts_planned, work.parts_written)
        words = f"{work.parts_written:,} of {parts:,}{_speed(rates.parts.per_s, True)}"
        add("parts", work.parts_written, parts, words)
    return table


def _speed(per_s: float, is_shown: bool) -> str:
    return f", {per_s:,.{1 if per_s < 100 else 0}f}/s" if is_shown and per_s > 0 else ""


def _line(words: str, style: str = "") -> Text:
    return Text(words, style, no_wrap=True, overflow="ellipsis")
