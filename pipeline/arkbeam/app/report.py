"""Tables for the terminal: the plan before a run, the summary after it, the content of an output."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
from rich.markup import escape
from rich.table import Table

from arkbeam.base.words import format_seconds
from arkbeam.outputs.published import Published, open_in_place, open_output
from arkbeam.outputs.sampling import read_failures
from arkbeam.outputs.summary import CODES_MAX, Code, count_codes
from arkbeam.quota.use import FoundLimits, describe_use
from arkbeam.stages.plan import Estimate, PlanTotals
from arkbeam.stages.publish import embeddings, failures

_CELL_CHARS_MAX = 40


def plan_table(totals: PlanTotals, estimate: Estimate) -> Table:
    """Return a table of a plan: rows, requests, tokens, cost and time."""
    rows = [
        ("rows", f"{totals.rows + totals.unreadable:,}"),
        ("unreadable", f"{totals.unreadable:,} rows have no valid input"),
        ("distinct", f"{totals.distinct:,}"),
        ("owned", f"{totals.owned:,} rows have their vector in the store"),
        ("rejected before", f"{totals.rejected:,} rows"),
        ("to send", f"{totals.to_buy:,} requests"),
        ("too long", f"{totals.over_context:,} rows are longer than the model's context, by estimate"),
        ("tokens", f"about {totals.tokens:,} ({totals.text_tokens:,} text, {totals.image_tokens:,} image)"),
        ("cost", f"about {estimate.cost_cny:,.4f} CNY"),
        ("time", f"at least {format_seconds(estimate.minutes * 60)}, because of the quota"),
        ("binding limit", estimate.binding if totals.to_buy else "none: nothing to send"),
    ]
    rows += _describe_not_finite(totals.not_finite)
    if estimate.covered is not None:
        rows.append(("budget", f"covers about {estimate.covered:.0%} of what is missing"))
    rows += [(note.level, escape(note.message)) for note in totals.notes]
    return two_columns("plan", rows)


def describe_plan(totals: PlanTotals, estimate: Estimate) -> dict[str, Any]:
    """Return a plan as a document: the counts, and the estimates of cost and time."""
    return {**asdict(totals), "tokens": totals.tokens, "estimate": asdict(estimate)}


def summary_table(result: dict[str, Any]) -> Table:
    """Return a table of the results of a run, from the content of `run.json`."""
    tokens, quota = result["tokens"], result["quota"]
    rows = [
        ("rows", f"{result['rows']:,}"),
        ("published", f"{result['published']:,}"),
        ("failed", f"{result['failed']:,}"),
        ("owned", f"{result['owned']:,} rows had their vector in the store"),
        ("duplicates", f"{result['duplicates']:,} rows share the request of an earlier row"),
        (
            "requests",
            f"{result['requests_sent']:,} sent, {result['requests_paid']:,} paid, {result['refused']:,} refused",
        ),
        ("retries", _describe_retries(result)),
        *_describe_second_pass(result.get("second_pass")),
        ("tokens", f"{tokens['total']:,} ({tokens['text']:,} text, {tokens['image']:,} image)"),
        (
            "cost",
            f"{result['cost_cny']:,.4f} CNY{' (emulator: not billed)' if result['service'] == 'stand-in' else ''}",
        ),
        ("quota", " ".join(describe_use(quota) or ("unused",))),
        *_describe_minutes(quota.get("minutes", [])),
        *_describe_estimates(quota.get("estimates", {})),
        *_describe_budget(result.get("budget")),
        *_describe_not_finite(result.get("kept_not_finite", 0)),
        ("time", format_seconds(result["elapsed_s"])),
    ]
    found = FoundLimits(quota.get("found_rpm"), quota.get("found_tpm"))
    rows += [("real quota", words) for words in found.describe(quota["rpm"], quota["tpm"])]
    rows += [(note["level"], escape(note["message"])) for note in result.get("notes", [])]
    return two_columns(f"run {result['run']}", rows)


def _describe_retries(result: dict[str, Any]) -> str:
    text = f"{result['retries']:,}"
    if result["unusable"]:
        text += f", {result['unusable']:,} unusable (billed) replies ({result.get('unusable_tokens', 0):,} tokens)"
    if result.get("lost"):
        text += f", {result['lost']:,} lost replies"
    if result["retries"] and "tries_max" in result:
        text += f"; at most {result['tries_max']} tries and {format_seconds(result['row_s_max'])} for one row"
    return text


def _describe_second_pass(second_pass: dict[str, int] | None) -> Iterator[tuple[str, str]]:
    if second_pass is not None and second_pass["tried"]:
        yield "second pass", f"{second_pass['tried']:,} tried again at the end, {second_pass['recovered']:,} recovered"


def _describe_minutes(minutes: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Describe how even the pace was, without the first minute and without a last minute of less than 30 s."""
    whole = [one for one in minutes[1:] if one["seconds"] >= 30]
    if not whole:
        return
    shares = sorted(one["utilisation"] for one in whole)
    requests = sum(one["requests"] for one in whole)
    refused = sum(one["refused"] for one in whole)
    spread = f"median {shares[len(shares) // 2]:.1%}, from {shares[0]:.1%} to {shares[-1]:.1%}"
    refused_share = refused / requests if requests else 0.0
    yield "pace by minute", f"{spread}, {refused_share:.1%} refused (from the second minute on)"


def _describe_estimates(estimates: dict[str, Any]) -> Iterator[tuple[str, str]]:
    parts = [
        f"{kind}: median ×{one['ratio_median']:.2f}, 95th percentile ×{one['ratio_p95']:.2f}"
        for kind, one in sorted(estimates.items())
    ]
    if parts:
        yield "tokens, billed / estimated", "; ".join(parts)


def _describe_budget(budget: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if budget is None:
        return
    parts = []
    if budget["tokens"] is not None:
        parts.append(f"{budget['tokens_used']:,} of {budget['tokens']:,} tokens")
    if budget["cny"] is not None:
        parts.append(f"{budget['cny_used']:,.4f} of {budget['cny']:,} CNY")
    yield "budget", ", ".join(parts)


def _describe_not_finite(count: int) -> Iterator[tuple[str, str]]:
    if count:
        yield "kept as null", f"{count:,} values of manifest.keep are NaN or Infinity, which JSON does not have"


def inspect_output(output_uri: str, rows_max: int) -> Iterator[Table]:
    """Yield tables of an output: the summary of its run, its columns with a few rows, the failures by code.

    Raise ConfigError if the folder has no complete output.
    """
    output = open_output(output_uri)
    yield summary_table(dict(output.note))
    if output.parts(embeddings.FOLDER):
        yield _rows_table(_read_head(output, rows_max))
    yield _codes_table(*_count_codes(output))


def describe_output(output_uri: str, rows_max: int) -> dict[str, Any]:
    """Return what `inspect_output` shows as a document: `run.json`, columns, rows in short form, failures by code.

    `failures` has the `CODES_MAX` most frequent codes, `failures_of_other_codes` the number of rows with another one.
    Raise ConfigError if the folder has no complete output.
    """
    output = open_output(output_uri)
    head = _read_head(output, rows_max)
    codes, others = _count_codes(output)
    return {
        "run": output.note,
        "columns": {
            field.name: _name_type(field, values.to_pylist())
            for field, values in zip(head.schema, head.columns, strict=True)
        },
        "rows": [{name: shorten(value) for name, value in row.items()} for row in head.to_pylist()],
        "failures": [
            {"code": one.code, "rows": one.rows, "first_message": one.message, "advice": one.advice} for one in codes
        ],
        "failures_of_other_codes": others,
    }


def _count_codes(output: Published) -> tuple[list[Code], int]:
    """Return the most frequent codes, and the number of rows with another one."""
    files = output.parts(failures.FOLDER)
    codes = count_codes(read_failures(output, files))
    return codes, sum(file.rows for file in files) - sum(one.rows for one in codes)


def two_columns(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    """Return a table of names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def _rows_table(rows: pa.Table) -> Table:
    """Return a table with one line for each column: its name, its type and its values in some rows."""
    heads = [f"row {number}" for number in range(1, rows.num_rows + 1)]
    table = Table("column", "type", *heads, title="embeddings", title_justify="left")
    for field, values in zip(rows.schema, rows.columns, strict=True):
        shown = values.to_pylist()
        cells = [field.name, _name_type(field, shown), *map(shorten, shown)]
        table.add_row(*map(escape, cells))
    return table


def _name_type(field: "pa.Field[Any]", values: Sequence[Any]) -> str:
    """Return the type of a column. All dense vectors of an output have the same length, which the type does not say."""
    if field.name == "dense" and values:
        return f"float[{len(values[0])}]"
    return str(field.type).replace("element: ", "")


def _codes_table(codes: Sequence[Code], others: int) -> Table:
    table = Table("code", "rows", "first message, and what to do", title="failures", title_justify="left")
    for one in codes:
        table.add_row(escape(one.code), f"{one.rows:,}", f"{escape(one.message)}\n→ {one.advice}")
    if others:
        table.add_row("others", f"{others:,}", f"only the {CODES_MAX} most frequent codes are shown")
    return table


def _read_head(output: Published, rows_max: int) -> pa.Table:
    for file in output.parts(embeddings.FOLDER)[:1]:
        with open_in_place(output, file) as reader:
            first = next(reader.iter_batches(batch_size=max(1, rows_max)), None)
            return pa.Table.from_batches([first] if first is not None else [], reader.schema_arrow).slice(0, rows_max)
    return pa.table({})


def shorten(value: Any) -> str:
    """Return a value in the few characters that a cell of a table has: of a path the name, of a list the first values."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        shown = [f"{one:.4g}" if isinstance(one, float) else shorten(one) for one in value[:3]]
        return _cut(", ".join([*shown, "…"] if len(value) > 3 else shown))
    if isinstance(value, dict) and isinstance(value.get("indices"), list):
        return f"{len(value['indices'])} active"
    return _cut(PurePosixPath(value).name if isinstance(value, str) and value.startswith("/") else str(value))


def _cut(text: str) -> str:
    return text if len(text) <= _CELL_CHARS_MAX else f"{text[: _CELL_CHARS_MAX - 1]}…"
