"""Why a run stops before its work is done: another service or model than expected, or a config that cannot work."""

from collections.abc import Callable
from dataclasses import dataclass, field

from arkbeam.base.records import Failure
from arkbeam.base.replies import ApiError, Reply
from arkbeam.engine.outcomes import Stop, StopKind
from arkbeam.store.events import Event

MODEL_CHANGED = "model_changed"


@dataclass(slots=True)
class ReplyCheck:
    """Checks each reply. `model` is the one that the store's vectors come from, None until the first reply.

    `note_model` is told of the first model, and of one that differs.
    """

    stand_in: bool
    model: str | None
    note_model: Callable[[str], None]

    def find_fault(self, reply: Reply) -> Failure | None:
        """Return why a reply must not be mixed with the others, or None."""
        if reply.stand_in != self.stand_in:
            kinds = ("a stand-in", "a real service")
            answered, meant = kinds if reply.stand_in else kinds[::-1]
            return Failure("wrong_service", f"{answered} answered where {meant} was expected: check api.base_url")
        if reply.model is None or reply.model == self.model:
            return None
        self.note_model(reply.model)
        if self.model is None:
            self.model = reply.model
            return None
        return Failure(
            MODEL_CHANGED,
            f"the service answers with {reply.model}, the store's vectors are of {self.model}: to buy all anew from "
            "now on, run with --accept-model-change; to keep the old ones, set model.name to their version",
        )


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


def stop_if_all_rejected(rejections: FirstRejections, error: ApiError) -> Stop | None:
    """Return why a run stops whose first rows were all rejected, the last with this error, or None."""
    if not rejections.is_tripped:
        return None
    message = (
        f"the service rejected the first {rejections.rows_max} rows, all with {error.code}, and took none: the config is likely "
        f"wrong (model, instructions, dimensions). The last: {error.message}. The rejections are not remembered; "
        "if the rows themselves are to blame, raise limits.rows_rejected_first_max"
    )
    return Stop(StopKind.SERVICE, "all_rejected", message)


def stop_if_service_fails(rows_in_a_row: int, rows_max: int, error: ApiError) -> Stop | None:
    """Return why a run stops in which so many rows in a row failed, the last with this error, or None."""
    if rows_in_a_row < rows_max:
        return None
    message = f"{rows_in_a_row} rows in a row failed after all their tries, the last with: {error.message}"
    return Stop(StopKind.SERVICE, "service_unavailable", message)
