"""The command `arkbeam search`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.markup import escape
from rich.table import Column, Table

from arkbeam.app.cli_options import AsJson, OutputUri
from arkbeam.app.cli_print import err, note, out, plain, print_json
from arkbeam.app.config import parse_published
from arkbeam.app.service import open_service_of_output
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import ServiceKind
from arkbeam.base.redaction import redact

if TYPE_CHECKING:
    from arkbeam.outputs.query import Bill, Service
    from arkbeam.outputs.search import Evaluation, Found

_VENDOR_HOSTS = (".volces.com", ".bytepluses.com")
_KEPT_SHOWN = 4
_EPILOG = """Example: arkbeam search out/demo 'a red kite' --where "lang = 'en'"

Exit codes: 0; 1: a storage error; 2: an error in the command line, or an output that can't be searched;
4: the service gave no vector for the query."""


def add_commands(app: typer.Typer, panel: str) -> None:
    """Add the command to the command line, in a panel of its help."""
    app.command(epilog=_EPILOG, rich_help_panel=panel)(search)


def search(
    output: OutputUri,
    words: Annotated[str | None, typer.Argument(metavar="WORDS", help="What to search for.")] = None,
    image: Annotated[str | None, typer.Option(metavar="FILE", help="Search with an image: a path or a URL.")] = None,
    like: Annotated[
        str | None, typer.Option(metavar="ID", help="Find what is near a row of the output; sends nothing.")
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            "--eval",
            metavar="FILE",
            help='Measure recall and nDCG. JSON lines such as {"query": "a red kite", "relevant": ["id-1"]}.',
        ),
    ] = None,
    mode: Annotated[
        str, typer.Option(metavar="MODE", help="Compare dense vectors, sparse ones, or both: dense, sparse, both.")
    ] = "dense",
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="Search only rows with this condition (DuckDB): \"lang = 'zh'\".")
    ] = None,
    count: Annotated[int, typer.Option("-k", min=1, max=10_000, help="Number of rows to find.")] = 10,
    task: Annotated[str | None, typer.Option(help="The task in the query's instructions, in words.")] = None,
    target_modality: Annotated[
        str | None, typer.Option(help="What the rows hold, for the query's instructions: text, image, 'text/image', …")
    ] = None,
    instructions: Annotated[str | None, typer.Option(help="Send exactly these instructions with the query.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a key of the output's config: --set api.api_key_env=KEY."
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Where the cache is. Default: a hidden folder beside the output."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search an output by words, by an image, or by one of its rows; exact, no index is built.

    The query's vector comes from the service and model of the output, whose config is in run.json; it is bought once.
    For an output of the emulator, an emulator is started. The first search copies the vectors into a cache, which follows the output
    and may be deleted at any time. Needs: pip install 'arkbeam[search]'.
    """
    from arkbeam.outputs.evaluate import read_judged
    from arkbeam.outputs.query import Query, Wording
    from arkbeam.outputs.search import Mode, Searcher

    if sum(one is not None for one in (words, image, like, evaluate)) != 1:
        raise ConfigError("say one of: words to search for, --image FILE, --like ID, --eval FILE")
    if mode not in list(Mode):
        raise ConfigError(f"--mode {mode}: it must be one of {', '.join(Mode)}")
    if evaluate is not None and where is not None:
        raise ConfigError("--eval measures a search of all rows: it can't be used with --where")
    with err.status("opening …") as status:
        searcher = Searcher(output, cache, lambda rows: status.update(f"making the cache … {rows:,} rows"))
    if like is not None:
        _show_found(searcher.like(like, mode=Mode(mode), count=count, where=where), as_json, "")
        return
    wording = Wording(instructions, task, target_modality)
    service = _make_service(searcher.output.note, settings or [])
    if evaluate is not None:
        _show_evaluation(searcher.evaluate(read_judged(evaluate), service, wording, count), as_json)
        return
    found = searcher.ask(Query(words, image), service, wording, mode=Mode(mode), count=count, where=where)
    _show_found(found, as_json, " (emulator: not billed)" if service.kind is ServiceKind.STAND_IN else "")


def _make_service(run: Mapping[str, Any], settings: Sequence[str]) -> "Service":
    """Return who makes the vectors of queries, given the content of run.json.

    Raise ConfigError if a setting changes what vectors depend on, or if the key would be sent to an unknown host.
    """
    from arkbeam.outputs.query import Service

    before, kind = parse_published(run)
    config, _ = parse_published(run, settings)
    for key in ("name", "dimensions"):
        made, asked = getattr(before.model, key), getattr(config.model, key)
        if made != asked:
            raise ConfigError(
                f"--set model.{key}={asked}: the vectors of this output were made with {made}, and no others can be compared"
                " with them"
            )
    if kind is ServiceKind.ARK and not any(setting.startswith("api.base_url=") for setting in settings):
        _check_url(config.api.base_url)
    return Service(
        kind=kind,
        model=config.model,
        media=config.media,
        api=config.api,
        connect=lambda: open_service_of_output(config, kind),
        quota=config.quota,
        limits=config.limits,
    )


def _check_url(url: str) -> None:
    """Raise ConfigError for a URL to which the key is not sent unasked: the output may come from someone else."""
    host = urlsplit(url).hostname or ""
    if not ((url.startswith("https://") and host.endswith(_VENDOR_HOSTS)) or host in ("localhost", "127.0.0.1")):
        raise ConfigError(
            f"run.json of the output names the service {redact(url)!r}, which is not the vendor's: if your API key may be"
            " sent there, say so with --set api.base_url=URL"
        )


def _show_found(found: "Found", as_json: bool, billed: str) -> None:
    """Print the rows that were found, and what the query cost."""
    from arkbeam.app.report import shorten

    if as_json:
        print_json(dataclasses.asdict(found))
        return
    shown = found.kept[:_KEPT_SHOWN]
    table = Table("", "score", Column("id", overflow="fold"), *(escape(plain(name)) for name in shown))
    for row in found.rows:
        kept = (escape(plain(shorten(row[name]))) for name in shown)
        table.add_row(str(row["rank"]), f"{row['score']:.4f}", escape(plain(row["id"])), *kept)
    out.print(table)
    if found.instructions is not None:
        note(f"instructions: {found.instructions!r}")
    note(
        f"{_describe_bill(found.bill)}{billed if found.bill.requests else ''}; {found.searched:,} rows searched in {found.milliseconds:.0f} ms"
    )


def _show_evaluation(result: "Evaluation", as_json: bool) -> None:
    """Print the quality by mode."""
    if as_json:
        print_json(dataclasses.asdict(result))
        return
    table = Table("", f"recall@{result.k}", f"nDCG@{result.k}")
    for mode, quality in result.quality.items():
        table.add_row(mode, f"{quality.recall:.4f}", f"{quality.ndcg:.4f}")
    out.print(table)
    if result.missing:
        note(f"{result.missing:,} relevant ids are not in the output; they count as not found")
    note(f"{result.queries:,} queries; {_describe_bill(result.bill)}; searched in {result.milliseconds / 1000:.1f} s")


def _describe_bill(bill: "Bill") -> str:
    if not bill.requests:
        return "the query cost nothing" + (": its vector was bought before" if bill.known else "")
    known = f", {bill.known:,} bought before" if bill.known else ""
    return f"{bill.requests:,} requests, {bill.tokens:,} tokens, {bill.cost_cny:.6f} CNY{known}"
