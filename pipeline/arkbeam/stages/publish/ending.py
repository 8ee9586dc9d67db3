"""The end of a job. It is in the job, since nobody may wait for the job, and whoever started it may be dead.

In a run with several processes the last stage does this, after the output is complete and the note `result` is written.
The command that waits for the job does the same once more, which changes nothing, and removes the notes when it has read
them. If no command waits, `arkbeam wait` and `status` find them, and the next run of the output removes them. In a run
with one process, the command does all of it.
"""

from arkbeam.base.files import exists, list_files, list_folders, remove_files, remove_folder, remove_leftovers
from arkbeam.base.uris import is_local, join
from arkbeam.quota.marks import quota_folder, remove_marks_of_run
from arkbeam.stages.spec import RunSpec
from arkbeam.store.claim import release_claim
from arkbeam.store.layout import events_folder, multi_folder, run_folder, segments_folder
from arkbeam.store.recovery import recover_run
from arkbeam.store.run_files import RUNNING, note_name, note_uri


def has_ended(spec: RunSpec) -> bool:
    """True if the job of a run with several processes has ended: a runner may repeat its last step. Raise StoreError."""
    return spec.many_processes and exists(note_uri(spec.store.uri, spec.run.name, "result"))


def end_job(spec: RunSpec) -> None:
    """Remove what a run with several processes leaves: journals, quota marks, temporary files, notes but `running` and `result`.

    The journals have nothing that is not in the store: processes that are alive store and send nothing after this. Raise
    StoreError.
    """
    if not spec.many_processes:
        return
    recover_run(spec.store.uri, spec.run.name)
    if is_local(spec.store.uri):  # files that a process was writing when it was killed
        for folder_of in (segments_folder, multi_folder, events_folder):
            remove_leftovers(folder_of(spec.store.uri, spec.run.name))
    remove_marks_of_run(quota_folder(spec.store.uri, spec.quota_account), spec.run.name)
    folder = run_folder(spec.store.uri, spec.run.name)
    for name in list_folders(folder):
        remove_folder(join(folder, name))
    kept = {note_name(RUNNING), note_name("result")}
    remove_files(uri for uri in list_files(folder) if uri.rpartition("/")[2] not in kept)
    if spec.is_detached:
        release_claim(spec.run.output_uri, spec.run.name)
