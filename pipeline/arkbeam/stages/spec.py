"""What every stage needs to know of a run. It is fixed before the first stage and pickled to every worker; it has no secrets."""

from dataclasses import dataclass
from typing import Any

from arkbeam.ark.client import ApiOptions
from arkbeam.ark.models import MODEL_FAMILY
from arkbeam.ark.wire import ModelSpec
from arkbeam.base.records import ServiceKind
from arkbeam.base.schema import Layout
from arkbeam.manifest.options import ManifestOptions
from arkbeam.media.options import MediaOptions
from arkbeam.quota.budget import BudgetOptions, Prices
from arkbeam.quota.options import LimitsOptions, QuotaOptions, RateLimits
from arkbeam.store.layout import StoreOptions, key_of_run, uri_key

PART_ROWS = 16_384  # about the rows of a published file


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Which run this is: its name, its start, the kind of service that it sends to, and the output that it writes."""

    name: str
    """Unique; made of the start, the key of the output and random digits (`store.layout.new_run_name`)."""
    started_s: float
    """Unix time."""
    service: ServiceKind
    output_uri: str
    output_template: str = ""
    """`output.uri` of the config, absolute: `output_uri` before a date and an id were put into it."""

    @property
    def output_key(self) -> str:
        """The key of the output (`store.outputs`), by which its runs find what the earlier ones left in the store."""
        return key_of_run(self.name) or uri_key(self.output_uri)


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run: its identity, its model, the sections of the config, and the options of the command line."""

    run: RunIdentity
    model: ModelSpec
    manifest: ManifestOptions
    media: MediaOptions
    """With `allowed_roots` filled in."""
    api: ApiOptions
    """With the base URL of the emulator, if the run starts one."""
    quota: QuotaOptions
    """`rpm` and `tpm` are None if the config does not set them: `rate_limits` has the limits in force."""
    budget: BudgetOptions
    limits: LimitsOptions
    store: StoreOptions
    config: dict[str, Any]
    """The whole config in the form in which `run.json` repeats it."""
    buckets: int
    """Number of buckets into which keys and index are split, by fingerprint."""
    retry_failed: bool = False
    """Send requests again that the service rejected permanently in an earlier run."""
    publish_partial: bool = False
    """Publish even if the run stops early."""
    verify: bool = False
    """Read the parts of the output that are kept, and write those again whose bytes have changed."""
    model_owned: str | None = None
    """Only vectors of this resolved model in the store count as owned; None: vectors of any model do."""
    layout: Layout = Layout.PORTABLE
    """How the published files are encoded."""
    report: bool = True
    """Write `report.html` with the output."""
    many_processes: bool = False
    """True if several processes may send at once."""
    is_detached: bool = False
    """True if no command waits for the end of the job (`arkbeam run --no-wait`)."""
    reads_failures: bool = False
    """True if the manifests are failure tables, so that only the rows that they name are read."""
    scratch_uri: str | None = None
    """A local folder for the files that only this run needs; None: they are in the store."""
    rows_before: int | None = None
    """Rows in the last run of the output, if that run is complete and read the same URIs; None otherwise."""
    manifest_bytes: int = 0
    """About how many bytes the manifests have, for the progress display."""

    @property
    def rate_limits(self) -> RateLimits:
        """Requests and tokens a minute that the run may send, before `quota.headroom`."""
        return self.quota.rate_limits(self.model.capabilities)

    @property
    def run_files_uri(self) -> str:
        """Where the staged rows and notes of the run are: `run_files` takes it in place of the store."""
        return self.scratch_uri or self.store.uri

    @property
    def quota_account(self) -> str:
        """The name under which processes share the quota: kind of service, account, family of models."""
        return f"{self.run.service.value}-{self.quota.account}-{MODEL_FAMILY}"

    @property
    def prices(self) -> Prices:
        """Prices of text and image tokens."""
        caps = self.model.capabilities
        return Prices.per_million(caps.price_text_cny_per_million, caps.price_image_cny_per_million)
