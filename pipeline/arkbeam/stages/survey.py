"""Survey: look at all shards together before anything is bought. Stop a run whose config or manifests are likely wrong."""

from collections.abc import Iterable, Iterator

from arkbeam.base.errors import ConfigError, ManifestError
from arkbeam.base.redaction import redact
from arkbeam.manifest.columns import (
    ColumnSurvey,
    describe_found,
    describe_missing,
    find_nearest,
    named_columns,
    show_name,
    survey_columns,
)
from arkbeam.manifest.options import ManifestOptions
from arkbeam.manifest.rows import RowParser
from arkbeam.stages.plan import Note, PlanTotals
from arkbeam.stages.read import ShardSummary
from arkbeam.stages.spec import RunSpec

_COLUMN_NOTES_MAX = 20


def survey_shards(summaries: Iterable[ShardSummary], spec: RunSpec) -> PlanTotals:
    """Return the counts of all shards that Plan does not see, with notes for the user.

    Raise ManifestError if there are fewer rows than `limits.rows_min`, ConfigError if no manifest has a column that the
    config names.
    """
    shards = sorted(summaries, key=lambda summary: summary.number)
    requests, unreadable = sum(shard.staged for shard in shards), sum(shard.unreadable for shard in shards)
    _check_rows(requests + unreadable, spec)
    columns = survey_columns((shard.manifest, shard.columns) for shard in shards)
    _check_columns(columns, requests, spec.manifest)
    notes = [
        *_note_shrinking(requests + unreadable, spec),
        *_note_columns(columns, spec.manifest),
        *(_note_no_input(columns, spec) if unreadable and not requests else ()),
    ]
    return PlanTotals(
        unreadable=unreadable,
        over_context=sum(shard.over_context for shard in shards),
        not_finite=sum(shard.not_finite for shard in shards),
        notes=tuple(notes),
    )


def _check_rows(rows: int, spec: RunSpec) -> None:
    """A run on failure tables may have any number of rows: none means that no row failed."""
    rows_min = spec.limits.rows_min
    if rows >= rows_min or spec.reads_failures:
        return
    uris = redact(", ".join(spec.manifest.uris), 300)
    raise ManifestError(
        f"the manifests have {rows:,} rows in all, fewer than limits.rows_min ({rows_min:,}): {uris}. Nothing was sent, and"
        f" the output was not changed. If this is meant, set limits.rows_min to {rows}"
    )


def _check_columns(columns: ColumnSurvey, requests: int, options: ManifestOptions) -> None:
    """Raise ConfigError if no manifest has a column that the config names.

    One case is no error: JSON rows of which none gives a request, and a column that is mapped by its default name, such
    as `text: text`, to which no name found is similar. Many writers of JSON leave out what is null, so this is likely
    an input without content. Nothing is bought for it, and its rows become failure rows, as without a mapping.
    """
    named = named_columns(options)
    missing = [name for name in named if name in columns.missing]
    if not requests and not columns.has_header:
        missing = [
            name
            for name in missing
            if named[name] != f"manifest.columns.{name}" or find_nearest(name, columns.names) is not None
        ]
    if missing:
        raise ConfigError(
            f"{describe_missing(missing, columns, named)}. Nothing was sent: correct the names, or remove them from the"
            " config"
        )


def _note_shrinking(rows: int, spec: RunSpec) -> Iterator[Note]:
    before = spec.rows_before
    if before is not None and 2 * rows < before:
        yield Note(
            "warning",
            "rows_shrank",
            f"the manifests have {rows:,} rows; in the last run of this output they had {before:,}",
            {"rows": rows, "rows_before": before},
        )


def _note_columns(columns: ColumnSurvey, options: ManifestOptions) -> Iterator[Note]:
    rare = columns.lacks.keys() - columns.missing
    lacking = [(name, key) for name, key in named_columns(options).items() if name in rare]
    for name, key in lacking[:_COLUMN_NOTES_MAX]:
        lack = columns.lacks[name]
        yield Note(
            "note",
            "column_lacking",
            f"{lack.manifests:,} of {columns.manifests:,} manifests do not have the column {show_name(name)} ({key}), such as"
            f" {redact(lack.example, 300)}; {lack.rows:,} of {columns.rows:,} rows are without it",
            {
                "column": redact(name),
                "manifests_without": lack.manifests,
                "manifests": columns.manifests,
                "rows_without": lack.rows,
                "rows": columns.rows,
            },
        )
    if len(lacking) > _COLUMN_NOTES_MAX:
        more = len(lacking) - _COLUMN_NOTES_MAX
        yield Note("note", "columns_lacking", f"some manifests lack {more:,} more named columns", {"columns": more})


def _note_no_input(columns: ColumnSurvey, spec: RunSpec) -> Iterator[Note]:
    """Explain why no row gave a request, if the manifests have none of the columns with content."""
    inputs = RowParser(spec.manifest, spec.model, "").inputs
    if columns.names and not columns.cut and inputs.isdisjoint(columns.names):
        yield Note(
            "warning",
            "no_input_column",
            f"no row can be sent, since the manifests have none of the columns {', '.join(map(show_name, sorted(inputs)))};"
            f" {describe_found(columns)}. Map the columns with your texts and media in manifest.columns",
        )
