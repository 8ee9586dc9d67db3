"""What a stand-in server is told: its quotas, its pace, its faults. Also the `emulator:` section of the user's YAML."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import Any

from arkbeam.base.errors import ConfigError
from arkbeam.emulator.replies import ERRORS


class QuotaWindow(StrEnum):
    """How a minute is counted: the last 60 s at any moment, or from :00 to :59 by the clock."""

    SLIDING = "sliding"
    CALENDAR = "calendar"


@dataclass(frozen=True, slots=True)
class FaultShares:
    """Shares (0 to 1, together at most 1) of the admitted requests that go wrong, and how.

    From `truncated` on they are billed: 200s that a client can't use, and answers that never arrive. The others are not.
    """

    rate_429: float = 0.0
    """Refused for its rate, without Retry-After."""
    rate_429_retry_after: float = 0.0
    """Refused for its rate, with `Retry-After: retry_after_s`."""
    overload_429: float = 0.0
    """ServerOverloaded."""
    error_500: float = 0.0
    """InternalServerError."""
    reset: float = 0.0
    """The connection is reset before a byte of the answer."""
    hang: float = 0.0
    """No answer ever comes; the connection stays open until the client leaves."""
    truncated: float = 0.0
    """Half of the body, then the connection closes: less than Content-Length promised."""
    broken_json: float = 0.0
    """The JSON text ends in its middle; Content-Length agrees with what is sent."""
    wrong_length: float = 0.0
    """The vector is one value short."""
    nan: float = 0.0
    """One value of the vector is NaN."""
    reset_paid: float = 0.0
    """As `reset`, after the work was done."""
    hang_paid: float = 0.0
    """As `hang`, after the work was done."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a share outside 0..1, or a sum above 1."""
        shares = dataclasses.asdict(self)
        for name, share in shares.items():
            if not 0.0 <= share <= 1.0:
                raise ConfigError(f"emulator.faults.{name} is a share between 0 and 1, not {share}")
        if sum(shares.values()) > 1.0 + 1e-9:
            raise ConfigError("emulator.faults: the shares add up to more than 1")


class Fault(StrEnum):
    """What can go wrong with an admitted request; named as in `FaultShares`, where each is explained."""

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
        """Whether the work was done, so that the request is paid although its answer is of no use."""
        return self in _BILLED


_BILLED = frozenset(
    {Fault.TRUNCATED, Fault.BROKEN_JSON, Fault.WRONG_LENGTH, Fault.NAN, Fault.RESET_PAID, Fault.HANG_PAID}
)


class FaultChooser:
    """Picks faults by their shares."""

    def __init__(self, shares: FaultShares) -> None:
        """Lay the shares end to end from 0."""
        values = dataclasses.asdict(shares)
        self._bounds = list(zip(accumulate(values[fault] for fault in Fault), Fault, strict=True))
        self.any = any(values.values())

    def choose(self, uniform: float) -> Fault | None:
        """Pick the fault that a number in [0, 1) falls on; None beyond them all."""
        return next((fault for bound, fault in self._bounds if uniform < bound), None)


@dataclass(frozen=True, slots=True)
class EmulatorOptions:
    """All that a stand-in server can be told. The defaults are a server without quotas, latency or faults."""

    rpm: int | None = None
    """Requests a minute; None: no limit."""
    tpm: int | None = None
    """Tokens a minute; None: no limit."""
    window: QuotaWindow = QuotaWindow.SLIDING
    """What a minute is."""
    refusals_count: bool = True
    """Whether a refused or rejected request uses up one of the minute's requests, as the vendor's burst guide says."""
    retry_after: bool = False
    """Whether a refusal for the quota tells in Retry-After (whole seconds) when there will be room."""
    retry_after_s: int = 1
    """What Retry-After says on the fault `rate_429_retry_after`."""
    latency_ms: float = 0.0
    """Time from admission to answer. Refusals and rejections answer at once."""
    jitter_ms: float = 0.0
    """A uniform random share of this is added to the latency."""
    seed: int = 0
    """Seeds faults and jitter."""
    faults: FaultShares = field(default_factory=FaultShares)
    """Which share of the admitted requests goes wrong, and how."""
    poison: str | None = None
    """A text with this substring is answered 400 SensitiveContentDetected."""
    stop_after: int | None = None
    """After this many paid requests every further one is answered with `stop_code`."""
    stop_code: str = "AccountOverdueError"
    """A code of the vendor's error table, such as QuotaExceeded or AccountOverdueError."""
    api_key_env: str | None = None
    """Name of the environment variable with the only key that is let in; None: any key that is not empty."""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    """Further model names, mostly Endpoint IDs, and the Model ID behind each. Other `ep-…` stand for the newest."""

    def __post_init__(self) -> None:
        """Raise ConfigError for what can't be."""
        for name in ("rpm", "tpm"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ConfigError(f"emulator.{name} must be at least 1, or absent for no limit; it is {limit}")
        for name in ("latency_ms", "jitter_ms", "retry_after_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"emulator.{name} can't be negative")
        if self.stop_after is not None and self.stop_after < 0:
            raise ConfigError("emulator.stop_after can't be negative")
        if self.stop_code not in ERRORS:
            raise ConfigError(f"emulator.stop_code {self.stop_code!r} is none of: {', '.join(sorted(ERRORS))}")


def read_options(values: Mapping[str, Any]) -> EmulatorOptions:
    """Build options from parsed JSON, as `write_options` makes it. Raises ConfigError on an unknown key."""
    known = {option.name for option in dataclasses.fields(EmulatorOptions)}
    shares_known = {option.name for option in dataclasses.fields(FaultShares)}
    faults = dict(values.get("faults") or {})
    unknown = sorted(set(values) - known) + [f"faults.{name}" for name in sorted(set(faults) - shares_known)]
    if unknown:
        raise ConfigError(f"unknown emulator options: {', '.join(unknown)}")
    try:
        window = QuotaWindow(values.get("window", QuotaWindow.SLIDING))
    except ValueError:
        raise ConfigError("emulator.window is 'sliding' or 'calendar'") from None
    return EmulatorOptions(**{**values, "window": window, "faults": FaultShares(**faults)})


def write_options(options: EmulatorOptions) -> dict[str, Any]:
    """Turn options into what JSON can carry."""
    return {**dataclasses.asdict(options), "window": options.window.value, "endpoints": dict(options.endpoints)}
