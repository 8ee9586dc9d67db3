"""The facts of a report that come from `run.json`: rows, requests, tokens, money, pace, bytes, notes.

Outputs of earlier versions lack some keys; what is missing is left out.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from arkbeam.base.redaction import redact
from arkbeam.base.words import format_bytes, format_seconds
from arkbeam.outputs.published import Published
from arkbeam.outputs.summary import Scalars
from arkbeam.quota.use import describe_use
from arkbeam.stages.publish.commit import PART_FOLDERS

CONFIG_CHARS_MAX = 20_000
NOTES_MAX = 20
_VALUE_CHARS_MAX = 400


@dataclass(frozen=True, slots=True)
class Fact:
    """A figure with its name, and what there is to say about it. `level`: `good`, `bad` or empty."""

    name: str
    value: str
    remark: str = ""
    level: str = ""


@dataclass(frozen=True, slots=True)
class Charge:
    """Tokens and cost of one modality, or of all."""

    name: str
    tokens: int
    cny: float
    all_tokens: int
    all_cny: float


@dataclass(frozen=True, slots=True)
class Pace:
    """How the quota was used, minute by minute. `edges`: in minutes from the start of the run; other fields: per minute."""

    rpm: int
    tpm: int
    edges: tuple[float, ...]
    accepted: tuple[float, ...]
    refused: tuple[float, ...]
    tokens: tuple[float, ...]


def digest_files(note: Mapping[str, Any]) -> str:
    """Return a digest of all files of an output."""
    names = sorted(f"{one['path']} {one['sha256']}" for one in note["files"])
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def list_tiles(note: Mapping[str, Any]) -> list[Fact]:
    """Return the figures at the top of the page."""
    rows, published, failed = note["rows"], note["published"], note["failed"]
    adds_up = rows == published + failed
    twice, totals = note["all_runs"]["paid_twice"], note["all_runs"]
    emulator = " (emulator: not billed)" if note["service"] == "stand-in" else ""
    return [
        Fact(
            "rows = published + failed",
            f"{rows:,} = {published:,} + {failed:,}",
            "none was lost" if adds_up else "the numbers do not add up: run again",
            "good" if adds_up else "bad",
        ),
        Fact("failed", f"{failed:,}", f"{failed / rows:.2%} of the rows" if rows else "", "bad" if failed else "good"),
        Fact("paid twice", f"{twice:,}", _explain_twice(totals), "bad" if twice else "good"),
        Fact("cost of this run", f"{note['cost_cny']:,.4f} CNY", f"{note['tokens']['total']:,} tokens{emulator}"),
        Fact("cost of all runs", f"{totals['cost_cny']:,.4f} CNY", f"{totals['requests_paid']:,} requests"),
        Fact("time", format_seconds(note["elapsed_s"]), f"started {note['started']}"),
    ]


def list_work(note: Mapping[str, Any], scalars: Scalars) -> list[Fact]:
    """Return what the run sent, and what it did not need to send."""
    facts = [
        Fact("distinct requests", f"{note['distinct']:,}", f"{note['duplicates']:,} rows share one of an earlier row"),
        Fact("in the store before", f"{note['owned']:,}", "rows whose vector was paid for by an earlier run"),
        Fact(
            "sent", f"{note['requests_sent']:,}", f"{note['requests_paid']:,} paid, {note['refused']:,} refused (429)"
        ),
        Fact("retries", f"{note['retries']:,}", "requests that were not the first try of their row"),
    ]
    if note.get("unusable") or note.get("lost"):
        facts.append(
            Fact(
                "without a vector", f"{note.get('unusable', 0):,} + {note.get('lost', 0):,}", "unusable + lost replies"
            )
        )
    second = note.get("second_pass") or {"tried": 0}
    if second["tried"]:
        facts.append(Fact("second pass", f"{second['tried']:,}", f"tried again, {second['recovered']:,} recovered"))
    saved = _saved(note, scalars)
    if saved is not None:
        facts.append(Fact("saved", f"about {saved:,.4f} CNY", "by duplicates and the store, over one request a row"))
    return facts


def list_charges(note: Mapping[str, Any]) -> list[Charge]:
    """Return tokens and cost by modality, of this run and of all runs."""
    charges = []
    for name in ("text", "image"):
        price = note["prices"][f"{name}_cny_per_million"] / 1e6
        mine, every = note["tokens"][name], note["all_runs"]["tokens"][name]
        label = "text" if name == "text" else "images and video frames"
        charges.append(Charge(label, mine, mine * price, every, every * price))
    tokens, cost = note["tokens"]["total"], note["cost_cny"]
    totals = note["all_runs"]
    return [*charges, Charge("together", tokens, cost, totals["tokens"]["total"], totals["cost_cny"])]


def read_pace(note: Mapping[str, Any]) -> Pace | None:
    """Return the use of the quota by minute; None if nothing was sent, or if `run.json` does not have it."""
    quota = note["quota"]
    minutes = quota.get("minutes") or []
    if not any(one["requests"] for one in minutes):
        return None
    edges = [one["minute"] for one in minutes] + [minutes[-1]["minute"] + minutes[-1]["minutes"]]
    lengths = [one["minutes"] for one in minutes]
    requests, refused, tokens = (
        tuple(one[name] / length for one, length in zip(minutes, lengths, strict=True))
        for name in ("requests", "refused", "tokens")
    )
    accepted = tuple(max(0.0, sent - no) for sent, no in zip(requests, refused, strict=True))
    return Pace(quota["rpm"], quota["tpm"], tuple(edges), accepted, refused, tokens)


def list_pace(note: Mapping[str, Any]) -> list[Fact]:
    """Return the limits of the quota and how far they were used."""
    quota = note["quota"]
    facts = [Fact("limits", f"{quota['rpm']:,} / {quota['tpm']:,}", "requests / tokens a minute, as configured")]
    used = describe_use(quota)
    if used is not None:
        facts.append(Fact("used", used[0], f"{used[1]}, over the whole run"))
    share = note.get("refused_share", 0.0)
    facts.append(Fact("refused", f"{note['refused']:,}", f"{share:.2%} of the requests", "bad" if share > 0.03 else ""))
    for name, unit in (("found_rpm", "requests"), ("found_tpm", "tokens")):
        if quota.get(name):
            facts.append(Fact("real limit", f"about {quota[name]:,}", f"{unit} a minute: set quota accordingly", "bad"))
    return facts


def list_bytes(output: Published) -> list[Fact]:
    """Return rows, files and bytes of each folder of the output."""
    facts = []
    for folder in PART_FOLDERS:
        files = output.parts(folder)
        rows, size = sum(file.rows for file in files), sum(file.bytes for file in files)
        if rows:
            remark = f"{rows:,} rows, {len(files):,} files, {size / rows:,.0f} bytes a row"
            facts.append(Fact(f"{folder}/", format_bytes(size), remark))
    return facts


def list_notes(note: Mapping[str, Any]) -> Iterator[Fact]:
    """Yield what deserves attention: why the run stopped, notes about the manifests, warnings."""
    if note.get("stopped"):
        stopped = note["stopped"]
        yield Fact(
            f"stopped ({redact(stopped['code'], 80)})", redact(stopped["message"], _VALUE_CHARS_MAX), level="bad"
        )
    for one in note.get("notes", [])[:NOTES_MAX]:
        level = "bad" if one["level"] == "warning" else ""
        yield Fact(redact(one["level"], 40), redact(one["message"], _VALUE_CHARS_MAX), level=level)
    if note.get("over_context"):
        yield Fact("too long", f"{note['over_context']:,} rows are longer than the model's context, by estimate")
    if note.get("kept_not_finite"):
        yield Fact("kept as null", f"{note['kept_not_finite']:,} values of manifest.keep are NaN or Infinity")
    if note.get("usage_missing"):
        yield Fact("without usage", f"{note['usage_missing']:,} paid replies have no token counts", level="bad")
    if note["all_runs"].get("files_unreadable"):
        yield Fact("damaged", f"{note['all_runs']['files_unreadable']:,} files of the store can't be read", level="bad")


def describe_config(note: Mapping[str, Any]) -> str:
    """Return the config as JSON, with secrets masked, cut to `CONFIG_CHARS_MAX` characters."""
    text = orjson.dumps(_mask(note.get("config", {})), option=orjson.OPT_INDENT_2).decode()
    return text if len(text) <= CONFIG_CHARS_MAX else f"{text[:CONFIG_CHARS_MAX]}\n…"


def _explain_twice(totals: Mapping[str, Any]) -> str:
    if totals["paid_twice"]:
        return "paid requests beyond one for each vector; usage/ lists them"
    return f"{totals['requests_paid']:,} requests paid, each for another vector"


def _saved(note: Mapping[str, Any], scalars: Scalars) -> float | None:
    """Estimate what one request for each published row would have cost, less the cost of this run; None if nothing was saved."""
    if not scalars.rows or not (note["duplicates"] or note["owned"]):
        return None
    prices = note["prices"]
    text, image = (prices[f"{name}_cny_per_million"] / 1e6 for name in ("text", "image"))
    each = (scalars.text_tokens * text + scalars.image_tokens * image) / scalars.rows
    return max(0.0, float(each * note["published"] - note["cost_cny"]))


def _mask(value: Any) -> Any:
    if isinstance(value, dict):
        return {redact(str(key), 200): _mask(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_mask(inner) for inner in value[:100]]
    return redact(value, _VALUE_CHARS_MAX) if isinstance(value, str) else value
