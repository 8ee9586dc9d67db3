"""The commands for a finished output: `arkbeam verify`, `arkbeam diff` and `arkbeam search`."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from arkbeam.app.config import Config, parse_config
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import ServiceKind
from arkbeam.base.redaction import redact
from arkbeam.emulator.options import EmulatorOptions

if TYPE_CHECKING:
    from arkbeam.outputs.query import Bill, Service
    from arkbeam.outputs.search import Evaluation, Found

_out, _err = Console(), Console(stderr=True)
_SEARCH_CODES = """Exit codes: 0; 1: a storage error; 2: an error in the command line, or an output that can't be searched; \
4: the service gave no vector for the query."""
_VENDOR_HOSTS = (".volces.com", ".bytepluses.com")
_PROBE_S = 2.0  # time limit for asking a local server if it is an emulator
_CELL_CHARS_MAX = 40
_KEPT_SHOWN = 4
OutputUri = Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder of the output.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


commands = typer.Typer()


@commands.command(
    epilog="Example: arkbeam verify out/demo\n\nExit codes: 0: no fault; 1: a fault, or a storage error; 2: the folder has no output."
)
def verify(
    output: OutputUri,
    as_json: AsJson = False,
    repeated_ids_ok: Annotated[
        bool, typer.Option("--repeated-ids-ok", help="An id that several rows of the manifest have is no fault.")
    ] = False,
) -> None:
    """Check that an output is complete and undamaged, and show the first ten faults.

    Reads every file once: its hash, its schema, the counts of run.json, every id and every row of the manifest once,
    vectors without NaN, their norms, and the order of sparse indices. Changes nothing.
    """
    from arkbeam.outputs.verify import verify_output

    with _err.status("checking …") as status:
        report = verify_output(
            output,
            repeated_ids_ok=repeated_ids_ok,
            note_progress=lambda files: status.update(f"checking … {files:,} files read"),
        )
    if as_json:
        print_json(dataclasses.asdict(report) | {"sound": report.is_sound})
    else:
        for fault in report.faults:
            say(f"{fault.code} {fault.where}: {fault.message}")
        more = sum(report.counts.values()) - len(report.faults)
        if more:
            say(f"… and {more:,} more faults")
        read = f"{report.files:,} files, {report.bytes:,} bytes, {report.published:,} rows published, {report.failed:,} failed"
        say(f"{'no fault' if report.is_sound else f'{sum(report.counts.values()):,} faults'}: {read}")
    raise typer.Exit(0 if report.is_sound else 1)


@commands.command(
    epilog="Example: arkbeam diff out/monday out/tuesday\n\nExit codes: 0, also if they differ; 1: a storage error; 2: one of them is no complete output."
)
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Folder of the older output.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Folder of the newer output.")],
    as_json: AsJson = False,
) -> None:
    """Compare two outputs by id: rows that were added, are gone, or have another vector or other kept columns.

    If the vectors of both have the same length, the cosines between the old and the new vectors are shown, for example
    of the same rows embedded by two models.
    """
    from arkbeam.outputs.diff import describe, diff_outputs

    with _err.status("reading …") as status:
        found = diff_outputs(a, b, lambda files: status.update(f"reading … {files:,} files read"))
    if as_json:
        print_json(dataclasses.asdict(found) | {"empty": found.is_empty})
        return
    for line in describe(found):
        say(line)


@commands.command(epilog=f"Example: arkbeam search out/demo 'a red kite' --where \"lang = 'en'\"\n\n{_SEARCH_CODES}")
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
    An output of the emulator starts one. The first search copies the vectors into a cache, which follows the output
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
    with _err.status("opening …") as status:
        searcher = Searcher(output, cache, lambda rows: status.update(f"making the cache … {rows:,} rows"))
    if like is not None:
        _show_found(searcher.like(like, mode=Mode(mode), count=count, where=where), as_json, "")
        return
    wording = Wording(instructions, task, target_modality)
    service = _service(searcher.output.note, settings or [])
    if evaluate is not None:
        _show_evaluation(searcher.evaluate(read_judged(evaluate), service, wording, count), as_json)
        return
    found = searcher.ask(Query(words, image), service, wording, mode=Mode(mode), count=count, where=where)
    _show_found(found, as_json, " (emulator: not billed)" if service.kind is ServiceKind.STAND_IN else "")


def _service(note: Mapping[str, Any], settings: Sequence[str]) -> "Service":
    """Return who makes the vectors of queries, as run.json says. Raise ConfigError if a setting changes what vectors depend on."""
    from arkbeam.outputs.query import Service

    try:
        before, config = (parse_config(note["config"], changes) for changes in ((), settings))
        kind = ServiceKind(note.get("service", ServiceKind.ARK))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"the config in run.json can't be used: {type(error).__name__}: {error}") from None
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
        connect=lambda: _connect(config, kind),
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


@contextmanager
def _connect(config: Config, kind: ServiceKind) -> Iterator[str]:
    """Yield the URL of the API. For an output of an emulator that does not run, start one, without quotas and faults."""
    from arkbeam.ark.client import is_stand_in

    url = config.api.base_url
    if kind is ServiceKind.ARK or (not config.starts_emulator and is_stand_in(url, _PROBE_S)):
        yield url
        return
    try:
        from arkbeam.emulator.serve import start_emulator
    except ImportError as error:
        raise ConfigError(
            f"the output was made by the emulator, which needs more packages: pip install 'arkbeam[emulator]' ({error})"
        ) from None
    with start_emulator(EmulatorOptions(endpoints=config.emulator.endpoints)) as started:
        yield started


def _show_found(found: "Found", as_json: bool, billed: str) -> None:
    """Print the rows that were found, and what the query cost."""
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    shown = found.kept[:_KEPT_SHOWN]
    table = Table("", "score", Column("id", overflow="fold"), *(escape(plain(name)) for name in shown))
    for row in found.rows:
        kept = (escape(_shorten(row[name])) for name in shown)
        table.add_row(str(row["rank"]), f"{row['score']:.4f}", escape(plain(row["id"])), *kept)
    _out.print(table)
    if found.instructions is not None:
        _note(f"instructions: {found.instructions!r}")
    _note(
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
    _out.print(table)
    if result.missing:
        _note(f"{result.missing:,} relevant ids are not in the output; they count as not found")
    _note(f"{result.queries:,} queries; {_describe_bill(result.bill)}; searched in {result.milliseconds / 1000:.1f} s")


def _describe_bill(bill: "Bill") -> str:
    if not bill.requests:
        return "the query cost nothing" + (": its vector was bought before" if bill.known else "")
    known = f", {bill.known:,} bought before" if bill.known else ""
    return f"{bill.requests:,} requests, {bill.tokens:,} tokens, {bill.cost_cny:.6f} CNY{known}"


def _shorten(value: Any) -> str:
    text = plain(value if isinstance(value, str) else orjson.dumps(value, default=str).decode())
    return text if len(text) <= _CELL_CHARS_MAX else f"{text[: _CELL_CHARS_MAX - 1]}…"


def _note(text: str) -> None:
    _err.print(plain(text), markup=False, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print one line: no wrapping, no markup, and nothing that a terminal obeys."""
    _out.print(plain(text), markup=False, highlight=False, soft_wrap=True)


def plain(text: str) -> str:
    """Replace characters that can't be printed, such as those that begin a terminal's commands."""
    return "".join(character if character.isprintable() else "�" for character in text)


def print_json(document: dict[str, Any]) -> None:
    """Print a JSON object. Values that JSON lacks become strings."""
    print(orjson.dumps(document, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode())
