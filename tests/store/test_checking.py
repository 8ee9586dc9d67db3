"""What remains of outputs that are not written any more is removed without a loss."""

import time
from collections.abc import Callable
from pathlib import Path

from arkbeam.base.files import list_folders
from arkbeam.store.checking import Garbage, collect_garbage
from arkbeam.store.journal import open_journal
from arkbeam.store.layout import events_folder, journals_folder, list_parquet, new_run_name, run_of, segments_folder
from arkbeam.store.segments import Bought, read_columns


def test_journals_of_old_runs_are_recovered(tmp_path: Path, make_bought: Callable[..., Bought]) -> None:
    """Replies and lost requests of a run that began before the given days are stored; the journals of a later run stay."""
    store = str(tmp_path)
    old, new = (new_run_name("0123abcd", time.time() - days * 86_400, "0" * 8) for days in (31, 29))
    for run in (old, new):
        journal = open_journal(store, run, "1")
        journal.bought(make_bought(1))
        journal.sent("open", bytes(16))
        journal.close(keep=True)
    assert collect_garbage(store, 30.0) == Garbage(0, 0, verified=False, stored=1, lost=1)
    for folder, name in ((segments_folder, "client-1"), (events_folder, "open")):
        (uri,) = list_parquet(folder(store))
        assert (run_of(uri), read_columns(uri, ["client_request_id"])[0].to_pylist()) == (old, [name])
    assert list_folders(journals_folder(store)) == [new]
    assert collect_garbage(store, 30.0) == Garbage(0, 0, verified=False)
