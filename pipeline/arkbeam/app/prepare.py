"""Prepare a job: check all that can be checked before anything is sent, and make the spec that all stages use."""

import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import orjson

from arkbeam.app.config import Config, describe_config, list_similar_names
from arkbeam.app.output_uri import resolve
from arkbeam.app.service import find_service
from arkbeam.ark.models import list_notes
from arkbeam.ark.wire import ModelSpec
from arkbeam.base.errors import ConfigError, StoreError
from arkbeam.base.files import exists, read_bytes
from arkbeam.base.redaction import redact, redact_uri
from arkbeam.base.uris import absolute, join
from arkbeam.manifest.finding import WrittenFolder
from arkbeam.manifest.shards import Manifest, Shard, cut_shards, list_manifests, manifest_folders
from arkbeam.media import is_below
from arkbeam.media.options import MediaOptions
from arkbeam.outputs.publishing import REPORT
from arkbeam.stages.plan import count_buckets
from arkbeam.stages.publish.commit import PART_FOLDERS, SUCCESS
from arkbeam.stages.publish.earlier import RUN_NOTE
from arkbeam.stages.spec import RunIdentity, RunSpec
from arkbeam.store.layout import EXAMPLES, new_run_name
from arkbeam.store.outputs import find_output_key

_log = logging.getLogger(__name__)
_PART = "part-00000-0123456789abcdef.parquet"  # a file in each folder of the output


@dataclass(frozen=True, slots=True)
class Job:
    """A run that is ready to start: its spec, the shards that it reads, and notes to show to the user."""

    spec: RunSpec
    shards: tuple[Shard, ...]
    notes: tuple[str, ...]
    manifest_bytes: int | None = None
    """Size of all manifests; None if that of some is unknown."""


def prepare_job(
    config: Config,
    *,
    base_url: str | None = None,
    retry_failed: bool = False,
    publish_partial: bool = False,
    verify: bool = False,
) -> Job:
    """Check everything that can be checked before anything is sent, and make the spec that all stages use.

    Args:
        config: the parsed config.
        base_url: URL of the emulator that was started for this run; None for `api.base_url`.
        retry_failed: send requests again that the service rejected permanently in an earlier run.
        publish_partial: publish even if the run stops early.
        verify: read the parts of the output that are kept, and write damaged ones again.

    Raise ConfigError or ManifestError that names the key or the file; StoreError.
    """
    started_s, random_hex = time.time(), secrets.token_hex(4)
    template = absolute(config.output.uri)
    config = _resolve_output(config, started_s, random_hex)
    model = ModelSpec.of(config.model)
    api = replace(config.api, base_url=base_url or config.api.base_url)
    service = find_service(config, api.base_url)
    manifests = list_manifests(config.manifest, _written_folders(config))
    shards = cut_shards(manifests, config.manifest.shard_bytes_max)
    _check_failures(manifests, config.output.uri)
    output_uri = absolute(config.output.uri)
    key = find_output_key(output_uri, absolute(config.store.uri)) or secrets.token_hex(4)
    run = RunIdentity(new_run_name(key, started_s, random_hex), started_s, service, output_uri, template)
    described = describe_config(config)
    reads_failures = all(manifest.failures for manifest in manifests)  # an empty failure table names no manifest
    spec = RunSpec(
        run=run,
        model=model,
        manifest=config.manifest,
        media=_fill_roots(config.media, manifests),
        api=api,
        quota=config.quota,
        budget=config.budget,
        limits=config.limits,
        store=replace(config.store, uri=absolute(config.store.uri)),
        config=described,
        buckets=count_buckets(sum(manifest.bytes or 0 for manifest in manifests)),
        layout=config.output.layout,
        report=config.output.report,
        retry_failed=retry_failed,
        publish_partial=publish_partial,
        verify=verify,
        reads_failures=reads_failures,
        manifest_bytes=sum(shard.bytes for shard in shards),
        rows_before=None if reads_failures else _find_rows_before(run.output_uri, described["manifest"]["uris"]),
    )
    notes = (
        *list_notes(config.model, model.capabilities),
        *_quota_notes(spec),
        *_name_notes(manifests),
        *list_similar_names(config),
    )
    sizes = [manifest.bytes for manifest in manifests]
    return Job(spec, tuple(shards), notes, None if None in sizes else sum(filter(None, sizes)))


def _resolve_output(config: Config, started_s: float, random_hex: str) -> Config:
    """Return the config with the URI of this run's output.

    Raise ConfigError if the store is in an output that later runs do not have.
    """
    uri = resolve(config.output.uri, started_s, random_hex)
    if uri != config.output.uri and is_below(absolute(config.store.uri), [absolute(uri)]):
        raise ConfigError(
            f"store.uri is below this run's output, {redact_uri(uri)}: set one outside, which later runs use as well"
        )
    return replace(config, output=replace(config.output, uri=uri))


def _written_folders(config: Config) -> list[WrittenFolder]:
    """Return what the run writes to the output and the store."""
    output_uri, store_uri = absolute(config.output.uri), absolute(config.store.uri)
    return [
        *(WrittenFolder("output.uri", join(output_uri, folder), _PART) for folder in PART_FOLDERS),
        *(WrittenFolder("output.uri", join(output_uri, name)) for name in (RUN_NOTE, REPORT)),
        *(WrittenFolder("store.uri", join(store_uri, folder), example) for folder, example in EXAMPLES.items()),
    ]


def _fill_roots(media: MediaOptions, manifests: Sequence[Manifest]) -> MediaOptions:
    """Allow media below the folders of the manifests, unless the config has `media.allowed_roots`."""
    return media if media.allowed_roots else replace(media, allowed_roots=manifest_folders(manifests))


def _check_failures(manifests: Sequence[Manifest], output_uri: str) -> None:
    """Raise ConfigError if a manifest is the `failures/` of this output: publishing would replace it, and drop all other rows."""
    for uri in sorted({uri for manifest in manifests for uri in manifest.failures}):
        if is_below(uri, [absolute(output_uri)]):
            raise ConfigError(
                f"manifest.uris names the failures of this output, {redact(uri)}: set another output.uri, or run the"
                " original manifest again, which retries the failed rows and pays for no row twice"
            )


def _find_rows_before(output_uri: str, manifest_uris: Sequence[str]) -> int | None:
    """Return how many rows the last run of a complete output read; None if it read manifests of other URIs."""
    try:
        if not exists(join(output_uri, SUCCESS)):
            return None
        before = orjson.loads(read_bytes(join(output_uri, RUN_NOTE)))
        return int(before["rows"]) if set(before["config"]["manifest"]["uris"]) == set(manifest_uris) else None
    except (StoreError, ValueError, TypeError, KeyError) as error:
        _log.warning(
            "the number of rows is not compared with that of the last run: its run.json can't be read: %s", error
        )
        return None


def _name_notes(manifests: Sequence[Manifest]) -> Iterator[str]:
    linked = [manifest for manifest in manifests if manifest.other_names]
    if linked:
        names, first = sum(len(manifest.other_names) for manifest in linked), linked[0]
        yield (
            f"each manifest is read once: names that lead to a file with another name are left out ({names:,}), such as"
            f" {redact(first.other_names[0])}, which is {redact(first.uri)}"
        )


def _quota_notes(spec: RunSpec) -> Iterator[str]:
    listed, (rpm, tpm) = spec.model.capabilities, spec.rate_limits
    if rpm > listed.rpm or tpm > listed.tpm:
        limits = f"{listed.rpm:,} requests and {listed.tpm:,} tokens a minute"
        yield f"the configured quota is above the vendor's limits for {spec.model.name} ({limits}); it is used as configured"
