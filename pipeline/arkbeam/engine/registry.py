"""The engines of this process, one a run: what stages, signal handlers and the progress display all find here.

A module-level object, because a pipeline is pickled: what hangs off it would be a copy that no signal reaches.
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
    """Return the run's engine in this process, made on first use."""
    with _lock:
        if run not in _engines:
            _engines[run] = make()
        return _engines[run]


def find_engine(run: str) -> Engine | None:
    """Return the run's engine in this process, if it has begun."""
    return _engines.get(run)


@contextmanager
def telling_others(tell: Callable[[Stop], None]) -> Iterator[None]:
    """Have stops told to engines of other processes as well, by `tell`, for the length of the block."""
    _others.append(tell)
    try:
        yield
    finally:
        _others.remove(tell)


def stop_engines(stop: Stop) -> bool:
    """Tell every engine of this process to stop, and those of others; False when there is none to tell."""
    engines = list(_engines.values())  # no lock: a signal handler may hold the thread that has it
    for engine in engines:
        engine.stop(stop)
    for tell in _others:
        tell(stop)
    return bool(engines or _others)


def close_engine(run: str) -> None:
    """End the run's engine, if there is one."""
    with _lock:
        engine = _engines.pop(run, None)
    if engine is not None:
        engine.close()
