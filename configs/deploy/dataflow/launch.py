"""Program of the Dataflow Flex Template: turns the template's parameters into a command line of arkbeam.

The launcher starts it with `--NAME=VALUE` for each parameter of metadata.json, and with Beam's own options. It ends as soon as
the job is submitted, as the launcher requires.
"""

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from arkbeam.base.files import read_bytes

FIXED = (
    "--autoscaling_algorithm=NONE",
    "--sdk_location=container",  # the image has the SDK
    "--experiments=use_runner_v2",
    "--experiments=no_use_multiple_sdk_containers",  # one process a worker: fewer processes share the quota
)


def build_command(arguments: Sequence[str], config: str) -> list[str]:
    """Return the command line of arkbeam.

    Args:
        arguments: the launcher's arguments.
        config: path of a local copy of the config.
    """
    options, beam = _parse(arguments)
    settings = [word for setting in shlex.split(options.set) for word in ("--set", setting)]
    workers = [f"--num_workers={options.workers}", f"--max_num_workers={options.workers}"]
    return ["arkbeam", "run", config, *settings, "--no-wait", "--", *beam, *workers, *FIXED]


def main(arguments: Sequence[str]) -> None:
    """Copy the config to this machine, then become arkbeam. Its exit code is the launcher's."""
    options, _ = _parse(arguments)
    path = Path(tempfile.mkdtemp()) / "config.yaml"
    path.write_bytes(read_bytes(options.config))
    command = build_command(arguments, str(path))
    os.execvp(command[0], command)


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", default="")
    parser.add_argument("--workers", type=int, required=True)
    return parser.parse_known_args(list(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
