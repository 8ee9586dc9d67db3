"""`arkbeam store`: look after a store."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from arkbeam.app.cli_options import AsJson, ExitCode
from arkbeam.app.cli_print import note, out, print_json
from arkbeam.base.errors import ConfigError
from arkbeam.base.redaction import redact_uri

store_app = typer.Typer(no_args_is_help=True, help="Look after a store: compact, stats, verify, gc.")
StoreUri = Annotated[str, typer.Argument(metavar="STORE", help="Folder or URI of the store (store.uri).")]
_EXIT_CODES = "Exit codes: 0; 1: a storage error; 2: there is no such store"


def add_commands(app: typer.Typer, panel: str) -> None:
    """Add the commands to the command line, in a panel of its help."""
    app.add_typer(store_app, name="store", rich_help_panel=panel)


@store_app.command(
    epilog=f"Example: arkbeam store compact s3://bucket/store\n\n{_EXIT_CODES}; 6: another compaction works on the store."
)
def compact(
    store: StoreUri,
    grace_h: Annotated[
        float, typer.Option("--grace-h", min=0.0, help="Hours for which replaced files stay (store.grace_h).")
    ] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Gather small segments and event files into large ones. Remove those that were replaced before.

    Runs may use the store meanwhile. If the compaction is killed, nothing is lost or counted twice: run it again.
    """
    from arkbeam.app.store import compacted_table
    from arkbeam.store.compaction import CompactionOptions, compact_store

    done = compact_store(_open_store(store), CompactionOptions(grace_s=3600.0 * grace_h))
    _print_result(asdict(done), compacted_table(done), as_json=as_json)
    if done.in_use:
        note("nothing was done: another compaction works on this store")
        raise typer.Exit(ExitCode.IN_USE)


@store_app.command(epilog=f"Example: arkbeam store stats out/store --json\n\n{_EXIT_CODES}.")
def stats(store: StoreUri, as_json: AsJson = False) -> None:
    """Show what the store holds and what it has cost. Change nothing."""
    from arkbeam.app.store import describe_stats, stats_table
    from arkbeam.store.overview import read_stats

    described = describe_stats(read_stats(_open_store(store)))
    _print_result(described, stats_table(described), as_json=as_json)


@store_app.command(epilog=f"Example: arkbeam store verify out/store\n\n{_EXIT_CODES}, or a damaged file was found.")
def verify(store: StoreUri, as_json: AsJson = False) -> None:
    """Read every byte of the store and compare it with what was written. Change nothing.

    The next run that needs a damaged segment sets it aside and buys its vectors again.
    """
    from arkbeam.app.store import verified_table
    from arkbeam.store.checking import verify_store

    done = verify_store(_open_store(store))
    _print_result(asdict(done), verified_table(done), as_json=as_json)
    raise typer.Exit(ExitCode.FAULT if done.damaged else ExitCode.OK)


@store_app.command(epilog=f"Example: arkbeam store gc out/store --days 30\n\n{_EXIT_CODES}.")
def gc(
    store: StoreUri,
    days: Annotated[float, typer.Option(min=1.0, help="Remove only what is at least so old.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Remove what no run and no compaction removes.

    This is: what killed runs left of outputs that are not written any more (replies in their journals are stored first),
    per-token vectors without a segment, and the folder verified/ of earlier versions.
    Do not use it while a run works on the store that began more than --days days ago: it would lose its staged rows.
    """
    from arkbeam.app.store import garbage_table
    from arkbeam.store.checking import collect_garbage

    done = collect_garbage(_open_store(store), days)
    _print_result(asdict(done), garbage_table(done), as_json=as_json)


def _open_store(uri: str) -> str:
    """Return the URI of a store as runs use it. Raise ConfigError if there is no store."""
    from arkbeam.base.files import exists
    from arkbeam.base.uris import absolute, lower_scheme

    store_uri = absolute(lower_scheme(uri))
    if not exists(store_uri):
        raise ConfigError(f"there is no store at {redact_uri(uri)}")
    return store_uri


def _print_result(described: dict[str, Any], table: Table, *, as_json: bool) -> None:
    if as_json:
        print_json(described)
    else:
        out.print(table)
