"""What comes of one request, whichever service answers: a reply, or an error that says what to do about it.

ApiError.action
├── RETRY    the same request may work later: refused for now, timed out, cut off, or answered unusably
├── REJECT   this row will never work: it becomes a failure row
└── STOP     no row will work: key, account, quota, model or address is wrong; the run keeps what it paid and ends
"""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arkbeam.base.errors import ArkbeamError
from arkbeam.base.records import Usage


class Action(StrEnum):
    """What happens to the row and to the run. The tree in the module's docstring says when."""

    RETRY = "retry"
    REJECT = "reject"
    STOP = "stop"


class Pressure(StrEnum):
    """What a refusal says about pacing: which budget was overrun, that too many are open, or that the service is busy."""

    NONE = "none"
    RPM = "rpm"
    TPM = "tpm"
    IN_FLIGHT = "in_flight"
    OVERLOAD = "overload"


@dataclass(eq=False)
class ApiError(ArkbeamError):
    """One call failed. `code` is stable; `message` is redacted and bounded.

    `status` None means that no answer came; `lost`, which who sends it finds out, that it may have been served all the same and be billed; `paid`
    that an answer came which is billed but of no use, with what `usage` and `model` could be read from it. `request_id` is the service's. `attempts_max` is a bound on all tries of the
    item, lower than the retry policy's. Survives pickling.
    """

    message: str
    action: Action
    code: str
    pressure: Pressure = Pressure.NONE
    status: int | None = None
    request_id: str | None = None
    retry_after_s: float | None = None
    paid: bool = False
    usage: Usage | None = None
    model: str | None = None
    attempts_max: int | None = None
    lost: bool = False

    def __str__(self) -> str:
        """Show the message alone."""
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the fields: an exception's own way passes on positional arguments, and there are none."""
        return type(self), tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """A sparse vector: `indices` strictly increasing uint32, `values` float32 without zeros, equally long."""

    indices: NDArray[np.uint32]
    values: NDArray[np.float32]


class UsageFlaw(StrEnum):
    """What is wrong with a reply's usage. The vector is paid and kept all the same."""

    MISSING = "usage_missing"
    MALFORMED = "usage_malformed"
    INCONSISTENT = "usage_inconsistent"


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """One usable reply.

    `dense` is contiguous little-endian float32 as received, `norm` its Euclidean length; `sparse` None where none was
    asked for. `usage_flaw` None means that the usage is complete and adds up. `created` is in seconds since 1970.
    `multi` has one float16 vector per token, [tokens, dimensions]; None where none were asked for.
    """

    id: str | None
    model: str | None
    created: int | None
    dense: NDArray[np.float32]
    sparse: Sparse | None
    norm: np.float32
    usage: Usage
    usage_flaw: UsageFlaw | None
    stand_in: bool
    multi: NDArray[np.float16] | None = None

    @property
    def usage_missing(self) -> bool:
        """Some of the four token counts are null: not there, not readable, or not to be believed."""
        return self.usage_flaw is not None
