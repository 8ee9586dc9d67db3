"""Marks of the processes that share a quota, as files.

    <store>/quota/<account>/<run>.<random>.<number>   one process of a run; the number grows with each renewal

A renewal is a new file, so that a listing alone tells who lives: no backend's file times or entity tags are relied on. The
one before stays until the next, so that no listing, however it overlaps with a renewal, finds a process without a mark.
"""

import orjson

from arkbeam.base.files import join, list_files, remove_file, write_bytes
from arkbeam.store.layout import output_key

KEPT = 2


def quota_folder(store_uri: str, account: str) -> str:
    """Return the folder of the marks of one account's processes."""
    return join(store_uri, "quota", account)


def new_mark_name(run: str, random_hex: str) -> str:
    """Name a process's mark."""
    return f"{run}.{random_hex}"


def write_mark(folder: str, name: str, number: int, details: dict[str, str]) -> None:
    """Renew a mark for the `number`th time, and remove what it was two renewals ago. `details` are for people.

    Raises: StoreError.
    """
    write_bytes(_uri(folder, name, number), orjson.dumps(details), durable=False)
    if number >= KEPT:
        remove_file(_uri(folder, name, number - KEPT))


def list_marks(folder: str) -> dict[str, str]:
    """List the marks past any listing cache: name to token, which is another after each renewal.

    Raises: StoreError.
    """
    newest: dict[str, int] = {}
    for uri in list_files(folder):
        name, _, number = uri.rpartition("/")[2].rpartition(".")
        if number.isdecimal():
            newest[name] = max(newest.get(name, 0), int(number))
    return {name: str(number) for name, number in newest.items()}


def remove_mark(folder: str, name: str) -> None:
    """Remove all files of a mark. Raises: StoreError."""
    for uri in list_files(folder):
        if uri.rpartition("/")[2].rpartition(".")[0] == name:
            remove_file(uri)


def remove_marks_of_output(folder: str, output_uri: str) -> None:
    """Remove the marks of an output's runs. Only the holder of the output may call it: all of them are dead.

    Raises: StoreError.
    """
    marker = f"-{output_key(output_uri)}-"
    for name in list_marks(folder):
        if marker in name:
            remove_mark(folder, name)


def _uri(folder: str, name: str, number: int) -> str:
    return join(folder, f"{name}.{number}")
