"""The engines of this process, one a run: what stages, signal handlers and the progress display all find here.

A module-level object, because a pipeline is pickled: what hangs off it would be a copy that no signal reaches.
"""

import threading
from collections.abc import Callable

from pipeline.engine.core import Engine
from pipeline.engine.outcomes import Stop

_engines: dict[str, Engine] = {}
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


def stop_engines(stop: Stop) -> bool:
    """Tell every engine of this process to stop; False when there is none to tell."""
    engines = list(_engines.values())  # no lock: a signal handler may hold the thread that has it
    for engine in engines:
        engine.stop(stop)
    return bool(engines)


def close_engine(run: str) -> None:
    """End the run's engine, if there is one."""
    with _lock:
        engine = _engines.pop(run, None)
    if engine is not None:
        engine.close()
