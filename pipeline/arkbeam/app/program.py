"""The name of this program in the commands that it prints."""

import shlex
import shutil
import sys
from pathlib import Path

NAME = "arkbeam"


def program() -> str:
    """Return the name of this program, or its path if a shell would not find the name: `scripts/run` sets no PATH."""
    path = Path(sys.argv[0])
    if path.name != NAME or not path.is_absolute() or shutil.which(NAME) is not None:
        return NAME
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
