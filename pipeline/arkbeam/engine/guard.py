"""Who may answer: the kind of service that is meant, and one model for all vectors of a name."""

from collections.abc import Callable
from dataclasses import dataclass

from arkbeam.base.records import Failure
from arkbeam.base.replies import Reply

MODEL_CHANGED = "model_changed"


@dataclass(slots=True)
class Guard:
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
