"""How a run adapts to refusals: which share of each configured limit it uses.

Each kind of refusal (requests, tokens, an overloaded service, requests in flight) has its own `Control`. A control
counts the answers in spans of 10 s and decides once a span: slow down, undo a decrease that did not help, or recover.
It never reacts to a single refusal; the pause after a refusal is made by the `Pacer`.
"""

import math
from dataclasses import dataclass, field

SPAN_S = 10.0  # at most one decrease in this time
SPAN_S_MAX = 60.0
ANSWERS_MIN = 20  # a span with fewer answers goes on, up to SPAN_S_MAX
MARGIN = 0.98  # share of what the service was seen to accept
FACTOR_MIN = 0.01
STEP = 0.02  # increase in one span, as a share of the configured limit, up to what the service is known to accept
MINUTE_S = 60.0
BOLD_REFUSALS = 3  # a bold control decides after so many
CLEAN_SPANS = 3  # after so many spans without refusals, the factor from before the refusals is forgotten
PAUSES_WRONG = 1e-4  # accepted probability that random refusals look like a limit


@dataclass(frozen=True, slots=True)
class _Trial:
    """The share of refusals and the factor before a decrease whose effect is being measured."""

    share: float
    factor: float


@dataclass(slots=True)
class Control:
    """The share of a configured limit that is used (`factor`), and the share that the service is known to accept (`ceiling`).

    `tolerance` is the share of refusals that is accepted without slowing down. `probe` is the first step above
    `ceiling`; the step doubles with each minute without refusals. A `bold` control decides after a few refusals and
    goes straight to what the service accepted; otherwise a decrease is at most by half. `noise` is the share of
    refusals that occurs at any rate, and `is_limited` is True while the service's own limit is known to be lower than
    the configured one.
    """

    tolerance: float
    probe: float = 0.001
    bold: bool = False
    factor: float = 1.0
    ceiling: float = 1.0
    noise: float = 0.0
    is_limited: bool = False
    _since_s: float = -math.inf
    _lowered_s: float = -math.inf
    _answers: int = 0
    _refused: int = 0
    _dense: bool = False
    _taken: float | None = None
    _calm: int = 0  # steps above `ceiling` since the last decrease
    _clean: int = 0  # spans in a row with tolerable refusals
    _trial: _Trial | None = None
    _before: tuple[float, float] | None = None  # `factor` and `ceiling` before the first of a series of decreases

    def note_answer(
        self, *, refused: bool, sent_s: float, now_s: float, taken: float | None = None, dense: bool = False
    ) -> bool:
        """Count one answer; return True if `factor` or `ceiling` changed.

        `taken` is the share of the configured limit that the service accepted before a refusal, if known. `dense` is
        True if refusals follow each other even after pauses, which random refusals do not.
        """
        if self._since_s == -math.inf:
            self._since_s = sent_s
        if sent_s < self._since_s:
            return False  # sent at the previous rate
        self._answers += 1
        if refused:
            self._refused += 1
            self._dense = self._dense or dense
            self._taken = taken
        if not self._is_time(now_s):
            return False
        before = self.factor, self.ceiling
        self._decide(now_s)
        self._since_s, self._answers, self._refused, self._dense, self._taken = now_s, 0, 0, False, None
        return before != (self.factor, self.ceiling)

    @property
    def patience(self) -> int:
        """The number of refusals in a row that indicates a limit, given the share of refusals that are random."""
        if self.noise < 0.01:
            return 1
        return min(20, math.ceil(math.log(PAUSES_WRONG) / math.log(min(self.noise, 0.9))))

    def _is_time(self, now_s: float) -> bool:
        if self.bold and self._refused >= BOLD_REFUSALS and now_s - self._lowered_s >= SPAN_S:
            return True
        age_s = now_s - self._since_s
        return age_s >= SPAN_S and (self._answers >= ANSWERS_MIN or age_s >= SPAN_S_MAX)

    def _decide(self, now_s: float) -> None:
        share = self._refused / self._answers
        trial, self._trial = self._trial, None
        if trial is not None:
            if not self._dense and share > self._share_if_random(trial):
                self._undo(share)
                return
            self.is_limited = True
        self._clean = 0 if share > self.tolerance else self._clean + 1
        if self._clean >= CLEAN_SPANS:
            self._before = None
        if self._dense or share > max(self.tolerance, 2 * self.noise):
            self._decrease(share, now_s)
        else:
            self.noise += 0.3 * (share - self.noise)
            self._recover()

    def _undo(self, share: float) -> None:
        """Return to the factor from before the refusals: they occur at any rate."""
        if self._before is not None:
            self.factor, self.ceiling = self._before
        self.noise, self.is_limited = share, False

    def _share_if_random(self, trial: _Trial) -> float:
        """Return the share of refusals above which they are random.

        After a decrease, the share of random refusals stays the same; the share of refusals by a limit falls.
        """
        if_limit = max(0.0, 1 - (1 - trial.share) * trial.factor / self.factor)
        return (trial.share + if_limit) / 2

    def _decrease(self, share: float, now_s: float) -> None:
        taken = self.factor * (1 - share) if self._taken is None else self._taken
        known = taken < self.factor
        if not known and now_s - self._lowered_s < MINUTE_S:
            return  # the service's minute still includes what was sent at the previous rate
        self._trial = _Trial(share, self.factor)
        self._before = self._before or (self.factor, self.ceiling)
        self._lowered_s = now_s
        bearable = taken if known else self.factor * (0.9 if self._dense else 1 - share)
        target = min(bearable, self.factor) * MARGIN
        lowest = FACTOR_MIN if self.bold else max(FACTOR_MIN, self.factor / 2)
        before, self.factor = self.factor, max(lowest, target)
        self.ceiling = max(self.factor, taken if known else (self.factor + before) / 2)
        self._calm = 0

    def _recover(self) -> None:
        if self.factor < MARGIN * self.ceiling:
            self.factor = min(self.factor + STEP, MARGIN * self.ceiling)
            return
        if self.factor < 1:
            self.factor = min(1.0, self.factor + min(STEP, self.probe * 2.0 ** min(self._calm / 6, 10)))
            self.ceiling = max(self.ceiling, self.factor)
            self._calm += 1
        if self.factor > 0.97:
            self.is_limited = False


@dataclass(slots=True)
class InFlight:
    """How many requests may be in flight: what the rate needs at the measured latency (Little's law), and a reserve.

    `limit` starts low and grows by at most 1 with each answer, so it doubles with each round trip, without a burst. It
    is at most `requests_max`.
    """

    requests_max: int
    open: int = 0
    limit: float = 16.0
    latency_s: float = 0.0
    control: Control = field(default_factory=lambda: Control(tolerance=0.01, probe=0.0002, bold=True))
    _seen: int = 0

    def __post_init__(self) -> None:
        self.limit = min(self.limit, self.requests_max)

    @property
    def has_room(self) -> bool:
        """True if one more request may be sent."""
        return self.open < max(1, min(round(self.limit), round(self.control.factor * self.requests_max)))

    def note_answer(self, latency_s: float, per_s: float) -> None:
        """Adapt `limit` to the latency of one answer, at a rate of `per_s` requests a second."""
        self._seen += 1
        self.latency_s += max(0.05, 1 / self._seen) * (latency_s - self.latency_s)
        self.limit = max(1.0, min(self.limit + 1, needed_in_flight(per_s, self.latency_s), self.requests_max))


def needed_in_flight(per_s: float, latency_s: float) -> float:
    """Return how many requests to allow in flight: the mean (rate times latency), plus a quarter, two deviations, and 2.

    The number in flight is about Poisson-distributed, so its standard deviation is the root of the mean.
    """
    mean = per_s * latency_s
    return 1.25 * mean + 2 * math.sqrt(mean) + 2


RAMP_FREE_TPM = 3_000_000
RAMP_GROWTH = 1.2
RAMP_S = 180.0


@dataclass(slots=True)
class Ramp:
    """A limit on tokens a minute that grows by at most 20 % in 3 minutes above 3 million, as the vendor's burst guide asks."""

    started_s: float = -math.inf
    used_s: float = -math.inf

    def allow_tpm(self, now_s: float) -> float:
        """Return the tokens a minute that may be used at `now_s`. After a minute without use the ramp starts again at 3 million."""
        if now_s - self.used_s > 60:
            self.started_s = now_s
        self.used_s = now_s
        return RAMP_FREE_TPM * math.pow(RAMP_GROWTH, min((now_s - self.started_s) / RAMP_S, 100))
