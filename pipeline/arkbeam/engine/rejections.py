"""The first answers of a run: when the service rejects every row for one reason, the config is wrong, not the rows."""

from dataclasses import dataclass, field

from arkbeam.store.events import Event


@dataclass(slots=True)
class FirstRejections:
    """Holds rejections back until a vector was bought, or another reason was given: only then are they the rows' own fault."""

    rows_max: int
    is_over: bool = False
    is_tripped: bool = False
    _held: list[Event] = field(default_factory=list)

    def reject(self, event: Event) -> list[Event]:
        """Take a rejection in; return those that are to be remembered now."""
        if self.is_tripped:
            return []
        if self.is_over:
            return [event]
        if self._held and self._held[0].failure.code != event.failure.code:
            return [*self.end(), event]
        self._held.append(event)
        if len(self._held) >= self.rows_max:
            self.is_tripped = True
            self._held.clear()
        return []

    def end(self) -> list[Event]:
        """Take the rows as what was wrong; return the rejections that are to be remembered now."""
        self.is_over = True
        held, self._held = self._held, []
        return held
