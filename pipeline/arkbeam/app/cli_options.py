"""Arguments and options that several commands have."""

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
