"""A local folder for the staged rows and notes of a run whose stages all run in this process.

It is below the system's folder for temporary files (TMPDIR) and is removed when the run ends. While it exists, it shows
that its run is alive, so that the next run on this machine can remove it if the run was killed.
"""

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from arkbeam.base.files import remove_folder
from arkbeam.store.claim import find_dead, show_alive

_FREE_BYTES_MIN = 1024**3
_FREE_TIMES = 4  # staged rows are about as large as the manifests; compressed manifests are smaller


def has_room(manifest_bytes: int) -> bool:
    """True if the disk of temporary files surely holds the staged rows of manifests of this size."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    return free >= max(_FREE_BYTES_MIN, _FREE_TIMES * manifest_bytes)


@contextmanager
def scratch_folder(run: str) -> Iterator[str]:
    """Yield a new local folder, which is removed at the end of the block. Folders of killed runs are removed first."""
    prefix = f"arkbeam-run-{os.getuid()}-"
    dead, _ = find_dead(glob.glob(os.path.join(glob.escape(tempfile.gettempdir()), f"{prefix}*")))
    for folder in dead:
        remove_folder(folder)
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder, show_alive(folder, run):
        yield folder
