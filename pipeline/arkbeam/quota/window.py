"""How much was used in the last minute, as a service that counts a sliding minute sees it."""

from dataclasses import dataclass, field

BUCKET_S = 0.1
_BUCKETS = 602
_ROUNDING_S = 0.001
SPAN_S = (_BUCKETS - 1) * BUCKET_S  # a tenth above a minute, for what is on its way longer than what follows it


@dataclass(slots=True)
class Window:
    """A sum over the last 60.1 to 60.2 s, in a ring of buckets. Times must not go back, those of amounts may."""

    total: float = 0.0
    _newest: int = 0
    _amounts: list[float] = field(default_factory=lambda: [0.0] * _BUCKETS)

    def forget(self, now_s: float) -> None:
        """Drop what is older than the window."""
        current = int(now_s / BUCKET_S)
        if current - self._newest >= _BUCKETS:
            self._amounts, self.total = [0.0] * _BUCKETS, 0.0
            self._newest = current
        while self._newest < current:
            self._newest += 1
            place = self._newest % _BUCKETS
            self.total -= self._amounts[place]
            self._amounts[place] = 0.0

    def add(self, amount: float, at_s: float, now_s: float) -> None:
        """Count an amount, negative to take back, that was used at `at_s`; what is too old changes nothing."""
        self.forget(now_s)
        number = int(at_s / BUCKET_S)
        if number > self._newest - _BUCKETS:
            self._amounts[number % _BUCKETS] += amount
            self.total += amount

    def drop_in_s(self, amount: float, now_s: float) -> float:
        """Return the seconds until at least so much has left the window, if nothing comes."""
        self.forget(now_s)
        oldest = self._newest - _BUCKETS + 1
        for number in range(oldest, self._newest + 1):
            if amount <= 0:
                return max(0.0, (number - 1 + _BUCKETS) * BUCKET_S - now_s) + _ROUNDING_S
            amount -= self._amounts[number % _BUCKETS]
        return (self._newest + _BUCKETS) * BUCKET_S - now_s + _ROUNDING_S
