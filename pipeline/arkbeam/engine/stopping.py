"""Why a run stops by itself: an unexpected service or model answers, the config is likely wrong, or the service fails."""

from collections.abc import Callable
from dataclasses import dataclass, field

from arkbeam.base.records import Failure
from arkbeam.base.replies import ApiError, Reply
from arkbeam.engine.outcomes import Stop, StopKind
from arkbeam.store.events import Event

MODEL_CHANGED = "model_changed"


@dataclass(slots=True)
class ReplyCheck:
    """Checks that each reply comes from the expected kind of service and from one model.

    `model` is the model of the vectors in the store, None before the first reply. `note_model` is called with the first
    model, and with one that differs.
    """

    stand_in: bool
    model: str | None
    note_model: Callable[[str], None]

    def find_fault(self, reply: Reply) -> Failure | None:
        """Return why the vector of a reply must not be mixed with those in the store, or None."""
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
            f"the service answers with {reply.model}, but the vectors in the store are of {self.model}: to re-embed "
            "everything with the new model, run with --accept-model-change; to keep the old vectors, set model.name to "
            "their version",
        )


@dataclass(slots=True)
class FirstRejections:
    """Holds back the first rejections of a run, since the config may be wrong.

    As soon as a vector was bought or a second error code was seen, the rows are at fault: the rejections are stored,
    and `is_over` becomes True. If `rows_max` rows are rejected with one code before that, the config is likely wrong,
    and `is_tripped` becomes True.
    """

    rows_max: int
    is_over: bool = False
    is_tripped: bool = False
    _held: list[Event] = field(default_factory=list)

    def reject(self, event: Event) -> list[Event]:
        """Add a rejection; return the rejections that are to be stored now."""
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
        """Note that the rows are at fault; return the rejections that are to be stored now."""
        self.is_over = True
        held, self._held = self._held, []
        return held


def stop_if_all_rejected(rejections: FirstRejections, error: ApiError) -> Stop | None:
    """Return a stop if the first rows of the run were all rejected, the last one with `error`; else None."""
    if not rejections.is_tripped:
        return None
    message = (
        f"the service rejected the first {rejections.rows_max} rows, all with {error.code}, and accepted none: the config is "
        f"likely wrong (model, instructions, dimensions). The last: {error.message}. The rejections are not stored; if "
        "the rows are at fault, raise limits.rows_rejected_first_max"
    )
    return Stop(StopKind.SERVICE, "all_rejected", message)


def stop_if_service_fails(rows_in_a_row: int, rows_max: int, error: ApiError) -> Stop | None:
    """Return a stop if `rows_max` rows in a row failed, the last one with `error`; else None."""
    if rows_in_a_row < rows_max:
        return None
    message = f"{rows_in_a_row} rows in a row failed after all their tries, the last with: {error.message}"
    return Stop(StopKind.SERVICE, "service_unavailable", message)
