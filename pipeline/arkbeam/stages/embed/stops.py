"""How the processes of a run tell each other to stop: a note in the run's folder, read about every second."""

import threading
import time
from dataclasses import asdict

import orjson

from arkbeam.base.errors import StoreError
from arkbeam.base.files import exists, read_bytes, write_bytes
from arkbeam.engine.core import Engine
from arkbeam.engine.outcomes import Stop, StopKind
from arkbeam.stages.spec import RunSpec
from arkbeam.store.run_files import note_uri

POLL_S = 1.0


def write_stop(spec: RunSpec, stop: Stop) -> None:
    """Tell all processes of the run to stop. Raises: StoreError."""
    write_bytes(note_uri(spec.store.uri, spec.run, "stop"), orjson.dumps(asdict(stop)))


def read_stop(spec: RunSpec) -> Stop | None:
    """Read why the run is to stop, if it is. Raises: StoreError."""
    uri = note_uri(spec.store.uri, spec.run, "stop")
    if not exists(uri):
        return None
    note = orjson.loads(read_bytes(uri))
    return Stop(StopKind(note["kind"]), note["code"], note["message"])


def watch_stop(spec: RunSpec, engine: Engine, poll_s: float = POLL_S) -> None:
    """Stop the engine when the run is to stop, from a thread of its own that ends with the engine."""

    def watch() -> None:
        while engine.status().stop is None:
            time.sleep(poll_s)
            try:
                stop = read_stop(spec)
            except StoreError:
                continue  # the engine's own writes say so if it lasts
            if stop is not None:
                engine.stop(stop)
                return

    threading.Thread(target=watch, name="arkbeam-stop", daemon=True).start()
