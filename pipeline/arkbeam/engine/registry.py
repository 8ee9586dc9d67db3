"""The engines of this process, one for each run. Stages, signal handlers and the progress display find them here.

The engines are in a module-level variable because a pipeline is pickled: an engine inside the pipeline would be a copy,
and no signal handler could reach it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from arkbeam.engine.core import Engine
from arkbeam.engine.outcomes import Stop

_engines: dict[str, Engine] = {}
_others: list[Callable[[Stop], None]] = []
_lock = threading.Lock()


def get_engine(run: str, make: Callable[[], Engine]) -> Engine:
    """Return the engine of a run in this process; it is made on first use.

    One that has lost its journal is replaced: a runner may give a bundle to a process that stood still for a while.
    """
    with _lock:
        engine = _engines.get(run)
        if engine is not None and engine.has_lost_journal:
            threading.Thread(target=engine.close, name="arkbeam-close", daemon=True).start()  # it may take a while
            engine = None
        if engine is None:
            engine = _engines[run] = make()
        return engine


def find_engine(run: str) -> Engine | None:
    """Return the engine of a run in this process, or None if there is none."""
    return _engines.get(run)


@contextmanager
def forwarding_stops(forward: Callable[[Stop], None]) -> Iterator[None]:
    """Within the block, pass stops to the engines of other processes as well, by calling `forward`."""
    _others.append(forward)
    try:
        yield
    finally:
        _others.remove(forward)


def stop_engines(stop: Stop) -> bool:
    """Stop every engine of this process, and those of other processes; return False if there are none."""
    # No lock: this may run in a signal handler that interrupted the holder of the lock.
    engines = list(_engines.values())
    for engine in engines:
        engine.stop(stop)
    for forward in _others:
        forward(stop)
    return bool(engines or _others)


def close_engines(*, but: str | None = None) -> None:
    """Close the engines of all runs but one: a worker process may live longer than a run that nobody waits for."""
    for run in [run for run in list(_engines) if run != but]:
        close_engine(run)


def close_engine(run: str) -> None:
    """Close the engine of a run, if there is one."""
    with _lock:
        engine = _engines.pop(run, None)
    if engine is not None:
        engine.close()
