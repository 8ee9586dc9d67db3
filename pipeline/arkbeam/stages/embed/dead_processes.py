"""Store what dead processes of a run had received, and record what they lost.

This is done before a block of theirs is sent again, so that no reply is paid for twice, and before the run publishes, so
that `usage/` is complete.
"""

import logging
import time
from collections.abc import Callable, Collection

from arkbeam.engine.attempts import RENEW_S, Watched, blocks_folder, processes_folder
from arkbeam.quota.marks import list_marks
from arkbeam.stages.spec import RunSpec
from arkbeam.store.recovery import Recovered, find_unsettled, recover_run

WAIT_S = 60.0
"""How long to wait for processes that are alive and have requests in flight, for attempts that nobody needs any more."""
_log = logging.getLogger(__name__)


def recover_processes(processes: Collection[str], spec: RunSpec) -> Recovered:
    """Recover the journals of processes that are dead, and warn if something was lost or found. Raise StoreError.

    A process that only stood still finds that its journal was taken, and sends nothing more with it.
    """
    recovered = recover_run(spec.store.uri, spec.run.name, processes) if processes else Recovered()
    if recovered.stored or recovered.lost:
        _log.warning(
            "processes of this run were killed, or did not end: %d replies that they had received are recovered, and %d"
            " requests without a reply are counted as paid",
            recovered.stored,
            recovered.lost,
        )
    return recovered


def settle_processes(
    spec: RunSpec,
    wait_s: float = WAIT_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Recovered:
    """Recover the journals of this run's processes that died; wait for those that are alive. Raise StoreError.

    All sessions have ended. The mark of a process shows whether it is alive (`engine.attempts`). Of one that is alive,
    nothing is left to recover when its requests have their results. Those without a result after `wait_s` are recorded
    as lost, and the process stops.
    """
    if not spec.many_processes:
        return Recovered()
    marks = processes_folder(blocks_folder(spec.store.uri, spec.run.name))
    watched, deadline_s, total = Watched(), clock() + wait_s, Recovered()
    while unsettled := find_unsettled(spec.store.uri, spec.run.name):
        watched.note(list_marks(marks), clock())
        dead = {name for name in unsettled if watched.is_dead(name, clock())}
        ended = unsettled if clock() >= deadline_s else dead
        if ended:
            total = total.plus(recover_processes(ended, spec))
        if ended == unsettled:
            break
        sleep(RENEW_S)
    return total
