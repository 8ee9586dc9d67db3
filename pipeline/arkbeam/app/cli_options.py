"""Arguments and options that several commands have, and the exit codes."""

from enum import IntEnum
from typing import Annotated

import typer

ConfigPath = Annotated[
    str, typer.Argument(metavar="CONFIG", help="The config, a YAML file. configs/README.md lists its keys.")
]
OutputUri = Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder of the output.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config: --set quota.rpm=600. Repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables and lines.")]


class ExitCode(IntEnum):
    """Exit codes of the command line; `cli.EXIT_CODES` has their meanings."""

    OK = 0
    FAULT = 1
    USAGE = 2
    FAILURES = 3
    STOPPED = 4
    BUDGET = 5
    IN_USE = 6
    INTERRUPTED = 130
