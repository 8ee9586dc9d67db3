"""What `arkbeam store` prints: a table for a terminal, or the same as JSON."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from arkbeam.app.report import two_columns
from arkbeam.ark.models import ModelOptions, find_capabilities
from arkbeam.base.capabilities import cost_cny
from arkbeam.base.errors import ConfigError
from arkbeam.store.checking import Garbage, Verified
from arkbeam.store.compaction import Compacted
from arkbeam.store.overview import Files, ModelStats, StoreStats

_DAMAGED_SHOWN = 20


def describe_stats(stats: StoreStats) -> dict[str, Any]:
    """Return the numbers of a store, with the cost of each model at the vendor's list prices; null if it has none."""
    described = asdict(stats)
    costs = [_cost(name, model) for name, model in stats.models.items()]
    for model, cost in zip(described["models"].values(), costs, strict=True):
        model["cost_cny"] = cost
    return described | {"cost_cny": round(sum(cost for cost in costs if cost is not None), 6)}


def stats_table(described: dict[str, Any]) -> Table:
    """Return a table of `describe_stats`."""
    files = described["segments"]["files"] + described["events"]["files"]
    rows = [
        ("vectors", f"{described['vectors']:,}"),
        ("rejections", f"{described['rejected']:,} requests that the service rejected for good"),
        ("segments", _files(described["segments"])),
        ("of these small", f"{_files(described['small'])}: arkbeam store compact gathers them"),
        ("event files", _files(described["events"])),
        ("replaced", f"{_files(described['replaced'])}: removed after their grace period"),
        (
            "index",
            f"{_files(described['index'])}; covers {described['covered']:,} of {files:,} segments and event files",
        ),
        *((f"{name}/", _files(one)) for name, one in described["others"].items() if one["files"]),
        ("outputs", f"{described['outputs']:,}"),
    ]
    for name, model in described["models"].items():
        cost = "no list price" if model["cost_cny"] is None else f"{model['cost_cny']:,.4f} CNY at list prices"
        tokens = f"{model['text_tokens']:,} text and {model['image_tokens']:,} image tokens"
        rows.append(
            (name or "unknown model", f"{model['vectors']:,} vectors; {model['requests']:,} paid, {tokens}, {cost}")
        )
    rows.append(("spent", f"{described['cost_cny']:,.4f} CNY at list prices"))
    if described["unreadable"]:
        rows.append(("unreadable", f"{described['unreadable']:,} files, whose cost is missing: arkbeam store verify"))
    return two_columns("store", rows)


def compacted_table(done: Compacted) -> Table:
    """Return a table of what a compaction did."""
    rows = [
        ("replaced", f"{done.replaced:,} files by {done.written:,} ({_size(done.bytes)}, {done.rows:,} vectors)"),
        ("removed", f"{done.removed:,} files that were replaced before"),
        ("waiting", f"{done.waiting:,} replaced files: a later compaction removes them, after the grace period"),
    ]
    return two_columns("compaction", rows)


def verified_table(done: Verified) -> Table:
    """Return a table of a check, with the first damaged files."""
    rows = [("read", f"{done.files:,} files, {_size(done.bytes)}"), ("damaged", f"{len(done.damaged):,}")]
    rows += [("", line) for line in done.damaged[:_DAMAGED_SHOWN]]
    return two_columns("check", rows)


def garbage_table(done: Garbage) -> Table:
    """Return a table of what was removed."""
    rows = [
        ("runs", f"{done.runs:,} folders of dead runs"),
        ("journals", f"{done.stored:,} replies are stored, and {done.lost:,} requests counted as lost"),
        ("multi", f"{done.multi:,} files of per-token vectors without a segment"),
        ("verified/", "removed" if done.verified else "not there"),
    ]
    return two_columns("removed", rows)


def _cost(name: str, model: ModelStats) -> float | None:
    try:
        capabilities = find_capabilities(ModelOptions(name))
    except ConfigError:
        return None
    return round(cost_cny(model.text_tokens, model.image_tokens, capabilities), 6)


def _files(files: dict[str, Any] | Files) -> str:
    one = Files(**files) if isinstance(files, dict) else files
    return f"{one.files:,} ({_size(one.bytes)})"


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
