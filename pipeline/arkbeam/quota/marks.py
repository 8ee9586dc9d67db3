"""Marks: files in the store, by which processes that share a quota see each other.

    <store>/quota/<account>/<run>.<random>.<number>   one process of a run; the number grows with each renewal

A renewal writes a new file, so a listing alone shows which processes are alive: file times and entity tags, which
differ between storage backends, are not needed. The previous file is kept until the next renewal, so that a listing
that overlaps with a renewal still finds the process.
"""

import orjson

from arkbeam.base.files import list_files, remove_file, remove_files, write_bytes
from arkbeam.base.uris import join

KEPT = 2


def quota_folder(store_uri: str, account: str) -> str:
    """Return the folder of the marks of one account's processes."""
    return join(store_uri, "quota", account)


def new_mark_name(run: str, random_hex: str) -> str:
    """Return the name of a process's mark."""
    return f"{run}.{random_hex}"


def write_mark(folder: str, name: str, number: int, details: dict[str, str]) -> None:
    """Write the `number`th file of a mark, and remove the file of two renewals ago. Raise StoreError if that fails.

    `details` are the content of the file, for people who look at it.
    """
    write_bytes(_uri(folder, name, number), orjson.dumps(details), durable=False)
    if number >= KEPT:
        remove_file(_uri(folder, name, number - KEPT))


def list_marks(folder: str) -> dict[str, str]:
    """Return the token of each mark by its name. The token differs after each renewal. No listing cache is used.

    Raise StoreError if the folder can't be listed.
    """
    newest: dict[str, int] = {}
    for uri in list_files(folder):
        name, _, number = uri.rpartition("/")[2].rpartition(".")
        if number.isdecimal():
            newest[name] = max(newest.get(name, 0), int(number))
    return {name: str(number) for name, number in newest.items()}


def remove_mark(folder: str, name: str) -> None:
    """Remove all files of a mark. Raise StoreError if that fails."""
    for uri in list_files(folder):
        if uri.rpartition("/")[2].rpartition(".")[0] == name:
            remove_file(uri)


def remove_marks_of_output(folder: str, output_key: str) -> None:
    """Remove the marks of earlier runs of an output. Raise StoreError if that fails.

    Call this only while holding the claim on the output: then every process of an earlier run has ended.
    """
    marker = f"-{output_key}-"
    remove_files(uri for uri in list_files(folder) if marker in uri.rpartition("/")[2])


def remove_marks_of_run(folder: str, run: str) -> None:
    """Remove the marks of a run that has ended. Other runs of its output may have begun. Raise StoreError if that fails."""
    remove_files(uri for uri in list_files(folder) if uri.rpartition("/")[2].startswith(new_mark_name(run, "")))


def _uri(folder: str, name: str, number: int) -> str:
    return join(folder, f"{name}.{number}")
