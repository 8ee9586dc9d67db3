"""Hold an output for a run: its claim, signs of life, and what earlier runs of the output have left."""

import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from arkbeam.app.output_uri import stands_for
from arkbeam.app.run_note import read_newest_notes, write_run_note
from arkbeam.base.errors import OutputInUse, StoreError
from arkbeam.base.files import list_folders, remove_folder, remove_leftovers
from arkbeam.base.redaction import redact_uri
from arkbeam.base.uris import is_local
from arkbeam.engine.outcomes import Stop, StopKind
from arkbeam.engine.registry import close_engine, stop_engines
from arkbeam.quota.marks import quota_folder, remove_marks_of_output, remove_marks_of_run
from arkbeam.stages.embed.own_results import forget_own_results
from arkbeam.stages.embed.process import write_stop, write_stop_of
from arkbeam.stages.read import forget_index
from arkbeam.stages.spec import RunSpec
from arkbeam.store.claim import WAYS_OUT, Claim, claim_output, describe_run, show_alive
from arkbeam.store.layout import key_of_run, run_folder, uri_key
from arkbeam.store.leftovers import list_runs, remove_dead_plans, remove_dead_runs, remove_old_results
from arkbeam.store.living import Watches
from arkbeam.store.outputs import keep_output_key
from arkbeam.store.recovery import Recovered, recover_journals, recover_run

_log = logging.getLogger(__name__)


@contextmanager
def claiming(spec: RunSpec) -> Iterator[tuple[Claim, Watches]]:
    """Hold the claim on the output for the length of the block; yield it, with what is known of other runs of the output.

    A run whose first process has ended keeps its mark, which must not be overwritten: so such runs are looked for before.
    Raise OutputInUse if a run is alive.
    """
    run, watches = spec.run, Watches(spec.store.uri)
    others = [name for name in list_runs(spec.store.uri, run.output_key) if not watches.has_one_process(name)]
    _refuse(watches.judge(others), spec)
    with claim_output(run.output_uri, run.name, partial(_stop_when_lost, spec)) as claim:
        keep_output_key(run.output_uri, run.output_key)
        yield claim, watches


@contextmanager
def showing_life(spec: RunSpec, submitted_s: float | None = None) -> Iterator[None]:
    """Give the run its folder in the store, and show in it, for the length of the block, that this process is alive.

    This is shown first: runs of other outputs find this run by its note, and would take it for dead.
    """
    with show_alive(run_folder(spec.store.uri, spec.run.name), spec.run.name):
        write_run_note(spec, submitted_s)
        yield


def clear_dead_runs(spec: RunSpec, ended: str | None, watches: Watches) -> None:
    """Recover what earlier runs of this output paid for, then remove the files that those runs left behind.

    The same is done for runs of other outputs that the config's `output.uri` has named: with a date in it, they have no
    other next run. One that is alive goes on. `ended`: the run whose claim was taken over, so that the process that started
    it has ended. Raise OutputInUse if a run of this output is alive.
    """
    store_uri, run = spec.store.uri, spec.run
    watches.ended = [] if ended is None else [ended]
    own, earlier = _list_others(spec)
    living = watches.judge([*own, *earlier])
    _refuse([name for name in own if name in living], spec)
    dead = [name for name in (*own, *earlier) if name not in living]
    for name in dead:  # a process may have stood still: tell it to stop, and look once more
        if name in watches.watched:
            write_stop_of(store_uri, name, Stop(StopKind.INTERRUPTED, "taken_over", f"run {run.name} has begun"))
    revived = watches.find_revived(dead)
    _refuse([name for name in own if name in revived], spec)
    dead = [name for name in dead if name not in revived]
    recovered = recover_journals(store_uri, run.output_key)
    for name in set(earlier) & set(dead):
        recovered = recovered.plus(recover_run(store_uri, name))
        _remove_marks(spec, partial(remove_marks_of_run, run=name))
    _warn_of_killed(recovered)
    _remove_marks(spec, lambda folder: remove_marks_of_output(folder, spec.run.output_key))
    remove_dead_runs(store_uri, run.output_key, dead)
    remove_dead_plans(store_uri, uri_key(run.output_uri))
    remove_old_results(store_uri)
    remove_leftovers(run.output_uri)


def _list_others(spec: RunSpec) -> tuple[list[str], list[str]]:
    """List the other runs in the store: those of this output, and those of outputs that `output.uri` has named before.

    Equal paths on two machines are two outputs.
    """
    store_uri, run, host = spec.store.uri, spec.run, socket.gethostname()
    names = list_folders(run_folder(store_uri))
    own = [name for name in names if key_of_run(name) == run.output_key]
    notes = read_newest_notes(store_uri, set(names) - set(own))
    template = run.output_template or run.output_uri
    return [name for name in own if name != run.name], [
        note.run
        for note in notes
        if stands_for(template, note.output) and (note.host == host or not is_local(note.output))
    ]


def recover_killed(spec: RunSpec) -> None:
    """Store what processes of this run had received when they were killed, and record what they lost.

    The journals of other runs are left: one that has taken over the output may be alive.
    """
    _warn_of_killed(recover_run(spec.store.uri, spec.run.name))


def _warn_of_killed(found: Recovered) -> None:
    if found.stored or found.lost:
        _log.warning(
            "a process was killed: %d replies that it had received are recovered, and %d requests without"
            " a reply are counted as paid",
            found.stored,
            found.lost,
        )


def forget_run(spec: RunSpec) -> None:
    """Close the engine of a run that ends, forget what this process holds of it but its progress, and remove its files."""
    close_engine(spec.run.name)
    forget_index(spec.run.name)
    forget_own_results(spec.run.name)
    _remove_marks(spec, lambda folder: remove_marks_of_run(folder, spec.run.name))  # it may have lost the output
    for folder in {run_folder(spec.run_files_uri, spec.run.name), run_folder(spec.store.uri, spec.run.name)}:
        remove_folder(folder)


def _refuse(living: Sequence[str], spec: RunSpec) -> None:
    """Raise OutputInUse if other runs of the output are alive."""
    if living:
        raise OutputInUse(
            f"{redact_uri(spec.run.output_uri)} is in use by {describe_run(living[0], time.time())}: it has processes that"
            f" are alive in the store {redact_uri(spec.store.uri)}: {WAYS_OUT}"
        )


def _remove_marks(spec: RunSpec, remove: Callable[[str], None]) -> None:
    """Remove the quota marks of processes that were killed, or that ended right after their last session."""
    try:
        remove(quota_folder(spec.store.uri, spec.quota_account))
    except StoreError as error:
        _log.warning(
            "quota marks of ended processes can't be removed; other processes count them for some seconds: %s", error
        )


def _stop_when_lost(spec: RunSpec, reason: str) -> None:
    """Stop the run: now, or when it begins to send."""
    stop = Stop(StopKind.INTERRUPTED, "output_lost", reason)
    stop_engines(stop)
    with suppress(StoreError):  # a later step fails as well
        write_stop(spec, stop)
