"""Options of the emulator: quotas, latency and faults. Also the `emulator:` section of the config."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import Any

from arkbeam.base.errors import ConfigError
from arkbeam.emulator.replies import ERRORS


class QuotaWindow(StrEnum):
    """What a minute is for the quotas: the last 60 s (sliding), or :00 to :59 of the clock (calendar)."""

    SLIDING = "sliding"
    CALENDAR = "calendar"


@dataclass(frozen=True, slots=True)
class FaultShares:
    """Shares of the accepted requests that get each fault: from 0 to 1, together at most 1.

    Requests with a fault from `truncated` on are billed: their 200 is unusable or their response never arrives. The
    others are not billed.
    """

    rate_429: float = 0.0
    """429 for the request rate, without Retry-After."""
    rate_429_retry_after: float = 0.0
    """429 for the request rate, with `Retry-After: retry_after_s`."""
    overload_429: float = 0.0
    """429 ServerOverloaded."""
    error_500: float = 0.0
    """500 InternalServiceError."""
    reset: float = 0.0
    """The connection is reset before the first byte of the response."""
    hang: float = 0.0
    """There is no response; the connection stays open until the client closes it."""
    truncated: float = 0.0
    """Half of the body is sent, less than Content-Length declares; then the connection is closed."""
    broken_json: float = 0.0
    """The body is the first half of the JSON; Content-Length is correct."""
    wrong_length: float = 0.0
    """The vector has one value too few."""
    nan: float = 0.0
    """One value of the vector is NaN."""
    reset_paid: float = 0.0
    """Like `reset`, but the request was processed and is billed."""
    hang_paid: float = 0.0
    """Like `hang`, but the request was processed and is billed."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a share outside 0..1 or a sum above 1."""
        shares = dataclasses.asdict(self)
        for name, share in shares.items():
            if not 0.0 <= share <= 1.0:
                raise ConfigError(f"emulator.faults.{name} is {share}; it must be from 0 to 1")
        if sum(shares.values()) > 1.0 + 1e-9:
            raise ConfigError("emulator.faults: the shares add up to more than 1")


class Fault(StrEnum):
    """A fault of an accepted request. Names are those of `FaultShares`, which explains them."""

    RATE_429 = "rate_429"
    RATE_429_RETRY_AFTER = "rate_429_retry_after"
    OVERLOAD_429 = "overload_429"
    ERROR_500 = "error_500"
    RESET = "reset"
    HANG = "hang"
    TRUNCATED = "truncated"
    BROKEN_JSON = "broken_json"
    WRONG_LENGTH = "wrong_length"
    NAN = "nan"
    RESET_PAID = "reset_paid"
    HANG_PAID = "hang_paid"

    @property
    def billed(self) -> bool:
        """True if the request was processed, so that it is billed although the client gets no usable reply."""
        return self in _BILLED


_BILLED = frozenset(
    {Fault.TRUNCATED, Fault.BROKEN_JSON, Fault.WRONG_LENGTH, Fault.NAN, Fault.RESET_PAID, Fault.HANG_PAID}
)


class FaultChooser:
    """Chooses faults by their shares. Pure: the random number is an argument."""

    def __init__(self, shares: FaultShares) -> None:
        """Divide the interval [0, 1) by the shares."""
        values = dataclasses.asdict(shares)
        self._bounds = list(zip(accumulate(values[fault] for fault in Fault), Fault, strict=True))
        self.any = any(values.values())

    def choose(self, uniform: float) -> Fault | None:
        """Return the fault for a uniform random number in [0, 1), or None."""
        return next((fault for bound, fault in self._bounds if uniform < bound), None)


@dataclass(frozen=True, slots=True)
class EmulatorOptions:
    """All options of the emulator. By default it has no quotas, no latency and no faults."""

    rpm: int | None = None
    """Requests per minute. Unset: no limit."""
    tpm: int | None = None
    """Tokens per minute. Unset: no limit."""
    window: QuotaWindow = QuotaWindow.SLIDING
    """What a minute is: `sliding` (the last 60 s) or `calendar` (:00 to :59 of the clock)."""
    refusals_count: bool = True
    """True: a request that is refused (429) or rejected (400) also counts against `rpm`, as in the vendor's burst
    guide."""
    retry_after: bool = False
    """True: a 429 for the quota has Retry-After, in whole seconds, with the time until the request fits."""
    retry_after_s: int = 1
    """Retry-After of the fault `rate_429_retry_after`, in seconds."""
    latency_ms: float = 0.0
    """Time from accepting a request to its response, in milliseconds. Refusals and rejections have no latency."""
    jitter_ms: float = 0.0
    """Maximum random addition to the latency, in milliseconds, uniformly distributed."""
    seed: int = 0
    """Seed of the random numbers for faults and jitter."""
    faults: FaultShares = field(default_factory=FaultShares)
    """Shares of the accepted requests that get a fault."""
    poison: str | None = None
    """A request with this substring in a text gets 400 SensitiveContentDetected."""
    stop_after: int | None = None
    """After this many billed requests, every further request gets `stop_code`."""
    stop_code: str = "AccountOverdueError"
    """Error code for requests after `stop_after`, such as QuotaExceeded or AccountOverdueError."""
    api_key_env: str | None = None
    """Name of the environment variable with the only accepted API key. Unset: every non-empty key is accepted."""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    """Additional model names, usually Endpoint IDs, with the Model ID of each. Any other `ep-…` is the newest
    version."""

    def __post_init__(self) -> None:
        """Raise ConfigError for invalid options."""
        for name in ("rpm", "tpm"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ConfigError(f"emulator.{name} is {limit}; it must be at least 1, or unset for no limit")
        for name in ("latency_ms", "jitter_ms", "retry_after_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"emulator.{name} must not be negative")
        if self.stop_after is not None and self.stop_after < 0:
            raise ConfigError("emulator.stop_after must not be negative")
        if self.stop_code not in ERRORS:
            raise ConfigError(
                f"emulator.stop_code is {self.stop_code!r}; it must be one of {', '.join(sorted(ERRORS))}"
            )


def read_options(values: Mapping[str, Any]) -> EmulatorOptions:
    """Make options from the JSON values of `write_options`. Raise ConfigError for an unknown key or value."""
    known = {option.name for option in dataclasses.fields(EmulatorOptions)}
    shares_known = {option.name for option in dataclasses.fields(FaultShares)}
    faults = dict(values.get("faults") or {})
    unknown = sorted(set(values) - known) + [f"faults.{name}" for name in sorted(set(faults) - shares_known)]
    if unknown:
        raise ConfigError(f"unknown emulator options: {', '.join(unknown)}")
    try:
        window = QuotaWindow(values.get("window", QuotaWindow.SLIDING))
    except ValueError:
        raise ConfigError("emulator.window must be 'sliding' or 'calendar'") from None
    return EmulatorOptions(**{**values, "window": window, "faults": FaultShares(**faults)})


def write_options(options: EmulatorOptions) -> dict[str, Any]:
    """Return the options as values that JSON can represent."""
    return {**dataclasses.asdict(options), "window": options.window.value, "endpoints": dict(options.endpoints)}
