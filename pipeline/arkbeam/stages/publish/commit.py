"""The commit: an output is complete if it has the file `_SUCCESS`, which is written last.

The order of the steps makes a kill between any two of them harmless: remove `_SUCCESS`, write the parts that have changed,
remove files that are not in the plan, write `run.json`, write `report.html`, write `_SUCCESS`. No part is ever replaced
by another one (`stages.publish.earlier`), so those that `run.json` lists can be kept after a kill as well. A reader that
checks for `_SUCCESS` never takes an incomplete output for a complete one. Before each step, and before each part is put
in its place, the claim on the output is checked: a run that has lost its claim changes nothing more.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import orjson

from arkbeam.base import faults
from arkbeam.base.capabilities import cost_cny
from arkbeam.base.errors import StoreError
from arkbeam.base.files import Listed, exists, remove_file, remove_files, remove_leftovers, write_bytes
from arkbeam.base.uris import join
from arkbeam.engine.outcomes import Counts, RunReport, Stop, StopKind
from arkbeam.quota.budget import Cost
from arkbeam.quota.use import Minutes, Ratios
from arkbeam.stages.plan import PlanTotals
from arkbeam.stages.presence import showing_process
from arkbeam.stages.publish import embeddings, failures, usage
from arkbeam.stages.publish.earlier import RUN_NOTE, Earlier, PartFile, is_unchanged, list_parts, read_earlier
from arkbeam.stages.publish.usage import UsagePart, UsageTotals, count_paid_twice, settle_counts
from arkbeam.stages.spec import RunSpec
from arkbeam.store.claim import check_claim
from arkbeam.store.integrity import count_unreadable
from arkbeam.store.model_record import read_model
from arkbeam.store.run_files import note_uri

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
SUCCESS = "_SUCCESS"
PART_FOLDERS = (embeddings.FOLDER, embeddings.MULTI_FOLDER, failures.FOLDER, usage.FOLDER)


@dataclass(frozen=True, slots=True)
class Commit:
    """The results of a run that a commit needs. `embeddings` includes the parts of `multi/`."""

    totals: PlanTotals
    report: RunReport
    embeddings: Sequence[PartFile]
    failures: Sequence[PartFile]
    usage: Sequence[UsagePart]
    earlier: Earlier
    """What the output held when the commit began."""


def publishes(stop: Stop | None, spec: RunSpec) -> bool:
    """Return True if a run replaces its output: it finished, it used up its budget, or `--publish-partial` was given.

    Any other run that stopped leaves the earlier output as it was.
    """
    return stop is None or stop.kind is StopKind.BUDGET or spec.publish_partial


def begin_commit(spec: RunSpec, totals: PlanTotals) -> Earlier:
    """Find the parts that can be kept, and remove `_SUCCESS` before the first part is written.

    If the model's name had not been resolved when the run was planned, vectors that it owned may be of any model. Raise
    OutputInUse if this run has lost its claim on the output.
    """
    faults.hit("publish.begin")
    with showing_process(spec):
        check_claim(spec.run.output_uri, spec.run.name)
        model = spec.model_owned
        if model is None and totals.owned == 0:
            model = read_model(spec.store.uri, spec.run.service, spec.model.name).resolved
        earlier = read_earlier(spec, PART_FOLDERS, model or "")
        remove_file(join(spec.run.output_uri, SUCCESS), durable=True)
    return earlier


WritePage = Callable[[dict[str, Any], RunSpec], None]
"""Writes the page of an output, given the content of `run.json`."""


def end_run(commit: Commit, spec: RunSpec, write_page: WritePage | None = None) -> None:
    """Commit, or leave the output unchanged if the run stopped. Write the note `result` for the process that started the run."""
    result = (
        finish_commit(commit, spec, write_page) if publishes(commit.report.stop, spec) else describe_run(commit, spec)
    )
    write_bytes(note_uri(spec.run_files_uri, spec.run.name, "result"), orjson.dumps(result))


def finish_commit(commit: Commit, spec: RunSpec, write_page: WritePage | None = None) -> dict[str, Any]:
    """Check the number of rows, remove files that are not in the plan, mark the output complete; return `run.json`.

    Raise StoreError if the rows published and failed do not add up to the rows read, OutputInUse if the claim is
    lost.
    """
    result = describe_run(commit, spec)
    if result["rows"] != result["published"] + result["failed"]:
        counts = f"{result['rows']} rows read, {result['published']} published, {result['failed']} failed"
        raise StoreError(f"the numbers of rows do not match: {counts}; the output is not marked complete, run again")
    _warn_of_missing_usage(commit)
    files = [*commit.embeddings, *commit.failures, *(part.file for part in commit.usage)]
    with showing_process(spec):
        files = _step("clean", spec, partial(_remove_others, spec.run.output_uri, files))
        result["files"] = [_describe_file(file) for file in files]
        data = orjson.dumps(result, option=orjson.OPT_INDENT_2)
        _step("note", spec, partial(write_bytes, join(spec.run.output_uri, RUN_NOTE), data))
        if write_page is not None:
            _step("page", spec, partial(write_page, result, spec))
        _step("success", spec, partial(write_bytes, join(spec.run.output_uri, SUCCESS), b""))
    faults.hit("commit.done")
    return result


def _describe_file(file: PartFile) -> dict[str, Any]:
    return {name: value for name, value in asdict(file).items() if value is not None}


def _warn_of_missing_usage(commit: Commit) -> None:
    """Warn if `usage/` has fewer requests of this run than the engines counted: the store's listing may be out of date."""
    shown, counts = sum(part.this_run.attempts for part in commit.usage), commit.report.counts
    paid = counts.bought + counts.unusable + counts.lost
    if shown < paid:
        _log.warning(
            "usage/ has %d of the %d paid requests of this run: the next run of this output adds the rest", shown, paid
        )


def _step(name: str, spec: RunSpec, act: Callable[[], _Result]) -> _Result:
    """Do one step of the commit if this run still has its claim on the output."""
    faults.hit(f"commit.{name}")
    check_claim(spec.run.output_uri, spec.run.name)
    return act()


def describe_run(commit: Commit, spec: RunSpec) -> dict[str, Any]:
    """Return the content of `run.json`, without the list of files."""
    totals, counts, capabilities = commit.totals, commit.report.counts, spec.model.capabilities
    if spec.many_processes and commit.usage:
        counts = settle_counts(counts, sum((Counter(part.outcomes) for part in commit.usage), Counter[str]()))
    this_run = _sum([part.this_run for part in commit.usage]) if commit.usage else _counted(commit.report, spec)
    all_runs = _sum([part.all_runs for part in commit.usage])
    return {
        "run": spec.run.name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(spec.run.started_s)),
        "elapsed_s": round(time.time() - spec.run.started_s, 3),
        "service": spec.run.service.value,
        "layout": spec.layout.value,
        "rows": totals.rows + totals.unreadable,
        "published": sum(file.rows for file in commit.embeddings if file.path.startswith(f"{embeddings.FOLDER}/")),
        "failed": sum(file.rows for file in commit.failures),
        "distinct": totals.distinct,
        "duplicates": totals.duplicates,
        "owned": totals.owned,
        "to_buy": totals.to_buy,
        "requests_sent": counts.sent,
        "requests_paid": this_run.attempts,
        "refused": counts.refused,
        "refused_share": round(counts.refused / counts.sent, 6) if counts.sent else 0.0,
        "retries": counts.retries,
        "unusable": counts.unusable,
        "unusable_tokens": counts.unusable_tokens,
        "lost": counts.lost,
        "second_pass": {"tried": counts.second_tries, "recovered": counts.recovered},
        "tries_max": counts.tries_max,
        "row_s_max": round(counts.elapsed_s_max, 3),
        "over_context": totals.over_context,
        "notes": [asdict(note) for note in totals.notes],
        "kept_not_finite": totals.not_finite,
        "usage_missing": counts.usage_missing,
        "tokens": _tokens(this_run),
        "cost_cny": round(this_run.cost_cny, 6),
        "all_runs": {
            "requests_paid": all_runs.attempts,
            "paid_twice": count_paid_twice(commit.usage, spec, commit.earlier),
            "files_unreadable": count_unreadable(spec.store.uri, spec.run.output_key),
            "tokens": _tokens(all_runs),
            "cost_cny": round(all_runs.cost_cny, 6),
        },
        "quota": describe_quota(commit.report, spec),
        "prices": {
            "text_cny_per_million": capabilities.price_text_cny_per_million,
            "image_cny_per_million": capabilities.price_image_cny_per_million,
        },
        "budget": describe_budget(counts, spec),
        "stopped": asdict(commit.report.stop) if commit.report.stop else None,
        "config": spec.config,
    }


def describe_quota(report: RunReport, spec: RunSpec) -> dict[str, Any]:
    """Return the limits, how they were used, and the lower limits that refusals revealed."""
    rpm, tpm = spec.rate_limits
    return {
        "rpm": rpm,
        "tpm": tpm,
        "headroom": spec.quota.headroom,
        "utilisation": round(report.use.utilisation, 4),
        "binding": report.use.binding if report.counts.sent else None,
        "minutes": describe_minutes(report.minutes, spec),
        "estimates": {kind.value: describe_ratios(ratios) for kind, ratios in report.ratios.items()},
        "found_rpm": report.found.rpm,
        "found_tpm": report.found.tpm,
    }


def describe_minutes(minutes: Minutes, spec: RunSpec) -> list[dict[str, Any]]:
    """Return the use of the quota by minute. `utilisation` refers to the one limit that binds over the whole run."""
    entries = list(minutes.entries())
    rpm, tpm = spec.rate_limits
    used = [sum(entry.shares(rpm, tpm)[limit] * entry.seconds for entry in entries) for limit in (0, 1)]
    binding = 0 if used[0] >= used[1] else 1
    return [
        {
            "minute": entry.minute,
            "minutes": entry.minutes,
            "seconds": round(entry.seconds, 1),
            "requests": entry.requests,
            "refused": entry.refused,
            "tokens": entry.tokens,
            "utilisation": round(entry.shares(rpm, tpm)[binding], 4),
            "refused_share": round(entry.refused_share, 4),
        }
        for entry in entries
    ]


def describe_ratios(ratios: Ratios) -> dict[str, float]:
    """Return quantiles, over the replies, of the billed tokens divided by the estimate with which the request was admitted."""
    quantiles = {"ratio_p05": 0.05, "ratio_median": 0.5, "ratio_p95": 0.95}
    return {"replies": ratios.replies} | {name: round(ratios.quantile(at), 3) for name, at in quantiles.items()}


def describe_budget(counts: Counts, spec: RunSpec) -> dict[str, Any] | None:
    """Return the budget and its use; None without a budget. Each lost reply counts as the most that it can have cost."""
    if not spec.budget.is_set:
        return None
    used = Cost(counts.budget_tokens, counts.budget_pcny)
    return asdict(spec.budget) | {"tokens_used": used.tokens, "cny_used": round(used.cny, 9)}


def _counted(report: RunReport, spec: RunSpec) -> UsageTotals:
    """Return the engines' own counts, for a run that wrote no `usage/`. The prompt tokens are taken to be all tokens."""
    counts = report.counts
    cost = cost_cny(counts.text_tokens, counts.image_tokens, spec.model.capabilities)
    paid, total = counts.bought + counts.unusable + counts.lost, counts.total_tokens
    return UsageTotals(paid, total, total, counts.text_tokens, counts.image_tokens, cost)


def _tokens(totals: UsageTotals) -> dict[str, int]:
    return {
        "prompt": totals.prompt_tokens,
        "total": totals.total_tokens,
        "text": totals.text_tokens,
        "image": totals.image_tokens,
    }


def _sum(totals: Sequence[UsageTotals]) -> UsageTotals:
    result = UsageTotals()
    for one in totals:
        result = result.plus(one)
    return result


def _remove_others(output_uri: str, files: Sequence[PartFile]) -> list[PartFile]:
    """Remove all files but these from the folders of the parts; return these with their versions, sorted by path.

    Raise StoreError, before anything is removed, if a part is not there, or if one that is kept has changed.
    """
    listed = list_parts(output_uri, PART_FOLDERS)
    for file in files:
        _check_part(output_uri, file, listed.get(file.path))
    remove_files([listed[path].uri for path in sorted(listed.keys() - {file.path for file in files})])
    remove_leftovers(output_uri)
    versions = {path: one.version for path, one in listed.items()}
    return [replace(file, version=versions.get(file.path, "")) for file in sorted(files, key=lambda file: file.path)]


def _check_part(output_uri: str, file: PartFile, listed: Listed | None) -> None:
    """Check a part before `run.json` lists it. The version of a changed part must not become the one that is expected."""
    uri = join(output_uri, file.path)
    if listed is None and (file.kept or not exists(uri)):  # the listing may lack a part that was just written
        raise StoreError(f"{uri} was removed during the run: run again")
    if file.kept and not is_unchanged(file, listed):
        raise StoreError(f"{uri} was changed during the run by something else than this run: run again")
