"""Show the progress of a run: bars on a terminal, plain lines elsewhere, or JSON lines.

The counts come from `stages.meter`: those of this process, or of all processes of a run on many.
"""

import logging
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.live import Live

from arkbeam.app.bars import draw
from arkbeam.app.messages import LogForm, write_event
from arkbeam.app.view import (
    Rates,
    View,
    describe_silence,
    describe_state,
    describe_view,
    make_view,
    view_to_json,
)
from arkbeam.base.errors import StoreError
from arkbeam.stages.meter import Phase, Progress, Work, read_progress
from arkbeam.stages.spec import RunSpec

LIVE_S = 0.25
POLL_S = 2.0  # between two readings of the notes of many processes
PLAIN_S = 10.0
SILENT_S = 120.0  # without a note of any worker, which takes less than a minute to start
_log = logging.getLogger(__name__)


@contextmanager
def show_progress(
    spec: RunSpec, console: Console, *, form: LogForm = LogForm.TEXT, plain_s: float = PLAIN_S
) -> Iterator[None]:
    """Show the progress in a thread for the length of the block."""
    done = threading.Event()
    watch = _Watch(spec, console, done, plain_s, form)
    thread = threading.Thread(target=watch.run, name="arkbeam-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)


@dataclass(slots=True)
class _Watch:
    """The thread that shows the progress. Reading the notes of many processes may fail; then the last counts are shown."""

    spec: RunSpec
    console: Console
    done: threading.Event
    plain_s: float
    form: LogForm
    _rates: Rates = field(default_factory=Rates)
    _last: Progress = field(default_factory=lambda: Progress(Work()))
    _read_at_s: float = -math.inf
    _has_warned: bool = False

    def run(self) -> None:
        if self.form is LogForm.TEXT and self.console.is_terminal:
            self._show_live()
        else:
            self._print_lines()

    def _look(self) -> View:
        now_s = time.monotonic()
        if not self.spec.many_processes or now_s - self._read_at_s >= POLL_S:
            self._read_at_s = now_s
            try:
                self._last = _keep_counts(self._last, read_progress(self.spec))
            except StoreError:
                _log.debug("the progress can't be read", exc_info=True)
            self._rates.add(now_s, self._last)
        view = make_view(self._last, self._rates, self.spec, time.time())
        if not view.is_known and view.seconds >= SILENT_S and not self._has_warned:
            self._has_warned = True
            _log.warning("%s", describe_silence(self.spec))
        return view

    def _show_live(self) -> None:
        with Live(console=self.console, transient=True, auto_refresh=False) as live, _logging_above(live):
            while not self.done.wait(LIVE_S):
                view = self._look()
                live.update(draw(view, list(describe_state(view.status, self.spec))), refresh=True)

    def _print_lines(self) -> None:
        next_s = time.monotonic() + min(1.0, self.plain_s)
        phase = Phase.READING
        while not self.done.wait(LIVE_S):
            view = self._look()  # also if it is not printed: it adds the samples for the rates
            if time.monotonic() >= next_s or view.phase is not phase:
                self._print(view)
                next_s, phase = time.monotonic() + self.plain_s, view.phase

    def _print(self, view: View) -> None:
        if self.form is LogForm.JSON:
            write_event(self.console.file, "progress", view_to_json(view))
        else:
            print(describe_view(view, self.spec), file=self.console.file, flush=True)


def _keep_counts(last: Progress, progress: Progress) -> Progress:
    """Return the progress; when the run's files are removed, and with them the notes, the last counts are kept."""
    is_over = progress.work.phase is Phase.COMPACTING
    return replace(last, work=replace(last.work, phase=Phase.COMPACTING)) if is_over else progress


@contextmanager
def _logging_above(live: Live) -> Iterator[None]:
    """Print log records above the live display, which has replaced sys.stderr, and not over it."""
    with ExitStack() as stack:
        for handler in logging.getLogger().handlers:
            if live.is_started and isinstance(handler, logging.StreamHandler) and handler.stream is sys.__stderr__:
                handler.setStream(sys.stderr)
                stack.callback(handler.setStream, sys.__stderr__)
        yield
