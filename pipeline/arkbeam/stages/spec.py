"""What the stages of one run need to know: fixed before the first stage, sent to every worker, without a secret in it."""

from dataclasses import dataclass
from typing import Any

from arkbeam.ark.client import ApiOptions
from arkbeam.ark.wire import WireOptions
from arkbeam.base.capabilities import Capabilities
from arkbeam.base.records import ServiceKind
from arkbeam.manifest.context import ReadContext
from arkbeam.manifest.options import ManifestOptions
from arkbeam.quota.budget import NO_BUDGET, BudgetOptions, Prices
from arkbeam.quota.options import LimitsOptions, QuotaOptions
from arkbeam.store.layout import StoreOptions

BLOCK_ROWS = 2048  # of a lane's work: one row group of buyers
PART_ROWS = 16_384  # of a published file


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run. `rpm` and `tpm` are the limits in force; `config` is what `run.json` repeats of the config.

    `dimensions` is the length of the vectors as bought, `dimensions_published` the one they are cut to (0: none); `multi`
    says whether tokens have vectors too.
    `model_owned` is the model whose vectors in the store are taken as owned, None for all.
    `shares_budget` says whether several processes may buy at once: each then draws its share of the budget.
    `processes` is how many may send at once: more than one watch for each other's stops.
    `quota_account` names what the quota belongs to, for those who share it: service, account, family of models.
    """

    run: str
    started_s: float
    service: ServiceKind
    manifest: ManifestOptions
    reading: ReadContext
    wire: WireOptions
    dimensions: int
    capabilities: Capabilities
    api: ApiOptions
    quota: QuotaOptions
    rpm: int
    tpm: int
    limits: LimitsOptions
    store: StoreOptions
    output_uri: str
    buckets: int
    needs_key: bool
    retry_failed: bool
    publish_partial: bool
    config: dict[str, Any]
    multi: bool = False
    dimensions_published: int = 0
    model_owned: str | None = None
    processes: int = 1
    budget: BudgetOptions = NO_BUDGET
    shares_budget: bool = False
    quota_account: str = "default"

    @property
    def prices(self) -> Prices:
        """What tokens cost."""
        caps = self.capabilities
        return Prices.per_million(caps.price_text_cny_per_million, caps.price_image_cny_per_million)
