"""Arguments and options that several commands have, and the exit codes."""

from enum import IntEnum
from typing import Annotated

import typer

from arkbeam.app.messages import LogForm

ConfigPath = Annotated[
    str, typer.Argument(metavar="CONFIG", help="The config, a YAML file. configs/README.md lists its keys.")
]
OutputUri = Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder of the output.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config: --set quota.rpm=600. Repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables and lines.")]

LogOption = Annotated[LogForm, typer.Option("--log", help="The form of messages and progress on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings, errors and what --json asks for.")]
EXIT_CODES = """Exit codes:

0: every row was published, or at most limits.failures_allowed rows failed;
1: an internal error or a storage error;
2: an error in the command line, the config or a manifest;
3: more rows failed than limits.failures_allowed;
4: the service refused to continue (overdue account, exhausted quota, wrong key, …), or rejected all of the first rows;
5: the budget was used up;
6: another run of the output is alive (wait until it ends, or run with --take-over, which ends it first);
130: interrupted by Ctrl-C or SIGTERM.

If several apply, the first of 130, 4, 5, 3 is returned."""


class ExitCode(IntEnum):
    """Exit codes of the command line; `EXIT_CODES` has their meanings."""

    OK = 0
    FAULT = 1
    USAGE = 2
    FAILURES = 3
    STOPPED = 4
    BUDGET = 5
    IN_USE = 6
    TIMEOUT = 124
    INTERRUPTED = 130
