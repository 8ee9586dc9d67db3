"""Remove what dead runs left in the store, and nothing that may belong to a living one.

A run that holds an output looks whether other runs of it are alive (`store.living`). A plan shows in its own folder that it
is alive (`claim.show_alive`). Temporary files in folders that all runs share are removed when they have not changed for
AGE_S: no write takes as long.
"""

import time
from collections.abc import Sequence

from arkbeam.base.files import exists, list_folders, remove_folder, remove_leftovers
from arkbeam.base.uris import is_local, join
from arkbeam.store.claim import LEASE_S, find_dead
from arkbeam.store.layout import (
    PLAN_SUFFIX,
    events_folder,
    index_folder,
    is_gathered,
    media_folder,
    models_folder,
    multi_folder,
    run_folder,
    runs_of_output,
    segments_folder,
    start_of_run,
)
from arkbeam.store.run_files import note_uri

AGE_S = 3600.0
UNMARKED_AGE_S = 7 * 24 * 3600.0
"""Plans of earlier versions do not show whether they are alive: so long after its start, such a plan is dead."""


def list_runs(store_uri: str, output_key: str) -> list[str]:
    """List the runs of an output, without plans, that have not removed their folders. They may be alive."""
    return [run for run in runs_of_output(run_folder(store_uri), output_key) if not run.endswith(PLAN_SUFFIX)]


def remove_dead_runs(store_uri: str, output_key: str, dead: Sequence[str]) -> None:
    """Remove what dead runs of an output left.

    A process that wakes up in the middle finds its attempts gone, or the note that its run has to stop.
    """
    for run in dead:
        remove_folder(join(run_folder(store_uri, run), "blocks"))
        remove_folder(run_folder(store_uri, run))
    if is_local(store_uri):
        _remove_temporary_files(store_uri, output_key)


def remove_old_results(store_uri: str) -> None:
    """Remove the folders of runs of any output that ended `UNMARKED_AGE_S` ago, and whose result nobody has read.

    The next run of the same output removes such a folder. But an output with a date in its URI has no next run.
    """
    limit_s = time.time() - UNMARKED_AGE_S
    for run in list_folders(run_folder(store_uri)):
        if _started_before(run, limit_s) and exists(note_uri(store_uri, run, "result")):
            remove_folder(run_folder(store_uri, run))


def remove_dead_plans(store_uri: str, plans_key: str, *, lease_s: float = LEASE_S) -> None:
    """Remove what dead plans of an output left. `plans_key`: the key in their names (`layout.uri_key`)."""
    plans = [run for run in runs_of_output(run_folder(store_uri), plans_key) if run.endswith(PLAN_SUFFIX)]
    dead, unmarked = find_dead([run_folder(store_uri, run) for run in plans], lease_s=lease_s)
    for uri in (*dead, *(uri for uri in unmarked if _started_before(uri, time.time() - UNMARKED_AGE_S))):
        remove_folder(uri)


def _remove_temporary_files(store_uri: str, output_key: str) -> None:
    for folder in (segments_folder, multi_folder, events_folder):
        for run in runs_of_output(folder(store_uri), output_key):
            remove_leftovers(folder(store_uri, run), age_s=AGE_S if is_gathered(run) else 0.0)
    for uri in (index_folder(store_uri), media_folder(store_uri), models_folder(store_uri)):
        remove_leftovers(uri, age_s=AGE_S)


def _started_before(uri: str, limit_s: float) -> bool:
    """True if the name of a run's folder has a start before `limit_s`; False if the name has none."""
    started_s = start_of_run(uri.rpartition("/")[2])
    return started_s is not None and started_s < limit_s
