"""`arkbeam check`: what can be wrong with a config, its key, its manifests and its storage, found without sending anything."""

import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.app.config import Config, load_config
from arkbeam.app.output_uri import resolve
from arkbeam.app.prepare import Job, prepare_job
from arkbeam.ark.client import read_api_key
from arkbeam.base.errors import ArkbeamError, ConfigError, ManifestError, StoreError
from arkbeam.base.files import remove_file, write_bytes
from arkbeam.base.records import ServiceKind
from arkbeam.base.redaction import redact, redact_uri
from arkbeam.base.schema import KEYS, STAGED, UNREADABLE, concat
from arkbeam.base.uris import is_local, join
from arkbeam.base.words import format_seconds
from arkbeam.manifest.options import ReadContext
from arkbeam.manifest.raw_rows import ShardPlace
from arkbeam.manifest.read import read_shard
from arkbeam.manifest.shards import Shard
from arkbeam.stages.plan import PlanTotals, estimate
from arkbeam.stages.spec import RunSpec

SHARDS_SAMPLED = 3
_CODES_SHOWN = 3
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
_HOST = re.compile(r"https?://ark\.([a-z0-9-]+)\.volces\.com(?::\d+)?/api/v3/?")

State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: one line for people. `exit_code` is that of the error, if it is `wrong`."""

    name: str
    state: State
    text: str
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class SampledRows:
    """The first rows of some shards, as a run reads them. `share`: about how much of the manifests they are."""

    staged: pa.Table
    keys: pa.Table
    unreadable: pa.Table
    share: float


@dataclass(slots=True)
class Checked:
    """What later steps use: the config, if it is valid, the job, if it could be prepared, and the sampled rows."""

    config: Config | None = None
    job: Job | None = None
    rows: SampledRows | None = None


def check_config(path: str, settings: Sequence[str], checked: Checked) -> Iterator[Finding]:
    """Yield the findings, each as soon as it is known. `checked` gets what was prepared for them. Nothing is sent."""
    try:
        config = checked.config = load_config(path, settings)
    except ConfigError as error:
        yield _wrong("config", error)
        return
    yield Finding("config", "ok", f"{path} is valid")
    try:
        checked.job = prepare_job(config)
    except (ConfigError, ManifestError) as error:
        yield _check_key(config, is_needed=not config.starts_emulator)
        yield _wrong("manifest", error)
        yield from _check_storage(config)
        return
    except StoreError as error:
        yield _check_key(config, is_needed=not config.starts_emulator)
        found = [*_check_storage(config)]
        yield from found if any(one.state == "wrong" for one in found) else [_wrong("store", error)]
        return
    job = checked.job
    yield _check_key(config, is_needed=job.spec.run.service is ServiceKind.ARK)
    manifests = {shard.manifest for shard in job.shards}
    size = sum(shard.bytes for shard in job.shards)
    yield Finding(
        "manifest", "ok", f"{len(manifests):,} files with about {size:,} bytes; the run writes into none of them"
    )
    yield from _check_storage(config)
    try:
        checked.rows = sample_rows(job)
    except (ConfigError, ManifestError) as error:
        yield _wrong("rows", error)
        return
    yield from _check_rows(checked.rows)
    for note in job.notes:
        yield Finding("model", "note", note)
    yield from _check_quota(job.spec)
    yield _estimate(checked.rows, job.spec)


def sample_rows(job: Job) -> SampledRows:
    """Read the first rows of the first shards: up to 4,096 rows or 8 MB of each. Their media are looked at, not sent.

    Raise ManifestError if a manifest can't be read.
    """
    spec, chunks, share = job.spec, [], 0.0
    context = ReadContext(spec.run.service, spec.model, spec.media)
    for shard in job.shards[:SHARDS_SAMPLED]:
        place = ShardPlace()
        for chunk in islice(read_shard(shard, spec.manifest, context, place=place), 1):
            chunks.append(chunk)
            share += _share(shard, chunk.rows, place.bytes) / max(1, spec.manifest_bytes)
    return SampledRows(
        concat((chunk.staged.select(STAGED.names) for chunk in chunks), STAGED),
        concat((chunk.keys for chunk in chunks), KEYS),
        concat((chunk.unreadable for chunk in chunks), UNREADABLE),
        min(1.0, share) or 1.0,
    )


def _share(shard: Shard, rows: int, taken: int) -> float:
    """Return about how many bytes of a shard some of its rows are."""
    return shard.bytes * rows / shard.rows if shard.rows else min(taken, shard.bytes)


def _wrong(name: str, error: ArkbeamError) -> Finding:
    return Finding(name, "wrong", str(error), error.exit_code)


def _check_key(config: Config, *, is_needed: bool) -> Finding:
    name = config.api.api_key_env
    if not is_needed:
        return Finding("key", "ok", "not needed: the emulator takes none")
    try:
        key = read_api_key(name)
    except ConfigError as error:
        return _wrong("key", error)
    region = _HOST.fullmatch(config.api.base_url)
    where = f"region {region[1]}" if region is not None else redact(config.api.base_url, 100)
    text = f"{name} is set; a key is valid in the region in which it was created, and api.base_url is {where}"
    if not _UUID.fullmatch(key):
        return Finding("key", "note", f"{text}. It does not have the usual form of a key (a UUID)")
    return Finding("key", "ok" if region is not None else "note", text)


def _check_storage(config: Config) -> Iterator[Finding]:
    """Write a small file into store and output, and remove it."""
    output_uri = resolve(config.output.uri, time.time(), secrets.token_hex(4))
    for name, uri in (("store", config.store.uri), ("output", output_uri)):
        made = _missing_folders(uri) if is_local(uri) else []
        try:
            probe = join(uri, f".arkbeam-check-{secrets.token_hex(4)}")
            write_bytes(probe, b"")
            remove_file(probe)
            yield Finding(name, "ok", f"{redact_uri(uri)} can be written")
        except ArkbeamError as error:
            yield _wrong(name, error)
        finally:
            for folder in made:
                if folder.is_dir() and not os.listdir(folder):
                    folder.rmdir()


def _missing_folders(uri: str) -> list[Path]:
    """Return the folders of a local path that do not exist, the deepest first."""
    path = Path(uri.removeprefix("file://")).absolute()
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def _check_rows(rows: SampledRows) -> Iterator[Finding]:
    good, bad = rows.staged.num_rows, rows.unreadable.num_rows
    if not good:
        message = rows.unreadable["message"][0].as_py() if bad else "they are all blank"
        yield Finding("rows", "wrong", f"none of {good + bad:,} rows that were read can be sent: {message}", 2)
        return
    codes = Counter(rows.unreadable["code"].to_pylist())
    if not codes:
        yield Finding("rows", "ok", f"all of {good:,} rows that were read, and their media, can be sent")
        return
    messages = dict(zip(rows.unreadable["code"].to_pylist(), rows.unreadable["message"].to_pylist(), strict=True))
    shown = "; ".join(f"{code} {count:,}: {messages[code]}" for code, count in codes.most_common(_CODES_SHOWN))
    yield Finding("rows", "note", f"{bad:,} of {good + bad:,} rows that were read can't be sent: {redact(shown, 500)}")


def _check_quota(spec: RunSpec) -> Iterator[Finding]:
    rpm, tpm = spec.rate_limits
    own = (
        "as configured"
        if spec.quota.rpm or spec.quota.tpm
        else "the vendor's list; set quota.rpm and quota.tpm if yours differ"
    )
    yield Finding(
        "quota",
        "ok",
        f"{rpm:,} requests and {tpm:,} tokens a minute ({own}), of which {spec.quota.headroom:.0%} are used",
    )


def _estimate(rows: SampledRows, spec: RunSpec) -> Finding:
    """Extrapolate the sampled rows to the manifests. Rows that are owned, or occur twice, are counted as requests."""
    text_tokens, image_tokens = (
        round((pc.sum(rows.keys[name]).as_py() or 0) / rows.share) for name in ("text_tokens", "image_tokens")
    )
    requests = round(rows.keys.num_rows / rows.share)
    totals = PlanTotals(to_buy=requests, text_tokens=text_tokens, image_tokens=image_tokens)
    cost = estimate(totals, spec.model.capabilities, spec.rate_limits, headroom=spec.quota.headroom)
    text = (
        f"at most about {totals.to_buy:,} requests, {totals.tokens:,} tokens, {cost.cost_cny:,.4f} CNY,"
        f" {format_seconds(cost.minutes * 60)} at the quota ({cost.binding} decides)"
    )
    certain = "" if rows.share == 1 else f"; from {rows.share:.1%} of the manifests"
    return Finding("estimate", "ok", f"{text}{certain}. `arkbeam plan` counts exactly, without what is in the store")
