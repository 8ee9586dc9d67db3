"""The result of one request, independent of the service: a reply, or an error that says what to do next.

ApiError.action
├── RETRY    the same request may work later: it was refused for now, timed out, was cut off, or the reply was unusable
├── REJECT   this row will never work: it becomes a failure row
└── STOP     no row will work: key, account, quota, model or address is wrong; the run ends and keeps its paid vectors
"""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arkbeam.base.errors import ArkbeamError
from arkbeam.base.records import Usage


class Action(StrEnum):
    """What to do with the row and the run after an error. The module docstring says which action is for which error."""

    RETRY = "retry"
    REJECT = "reject"
    STOP = "stop"


class Pressure(StrEnum):
    """The cause of a refusal: the limit of requests or tokens per minute or of requests in flight, or an overload."""

    NONE = "none"
    RPM = "rpm"
    TPM = "tpm"
    IN_FLIGHT = "in_flight"
    OVERLOAD = "overload"


@dataclass(eq=False)
class ApiError(ArkbeamError):
    """One call failed. `code` is stable; `message` is redacted and bounded. Can be pickled.

    `status`: HTTP status; None if there was no answer.
    `request_id`: the service's id of the request.
    `paid`: a reply came that is billed but unusable; `usage` and `model` are what could be read from it.
    `lost`: the request was sent and got no answer, so the service may have processed and billed it. The sender sets
    this.
    `attempts_max`: the most tries of the item that may end with such an error, if the error has a bound of its own.
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
        """Pickle by the fields: the default for exceptions uses positional arguments, and here there are none."""
        return type(self), tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """A sparse vector: strictly increasing uint32 `indices` and as many non-zero float32 `values`."""

    indices: NDArray[np.uint32]
    values: NDArray[np.float32]


class UsageFlaw(StrEnum):
    """What is wrong with the usage of a reply. The vector is paid for and kept anyway."""

    MISSING = "usage_missing"
    MALFORMED = "usage_malformed"
    INCONSISTENT = "usage_inconsistent"


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """One usable reply.

    `dense`: contiguous little-endian float32, as received; `norm` is its Euclidean length.
    `sparse`: None if it was not asked for.
    `multi`: one float16 vector per token, [tokens, dimensions]; None if it was not asked for.
    `created`: seconds since 1970.
    `usage_flaw`: None if the usage is complete and adds up.
    `stand_in`: True if the server says that it is not the real service.
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
        """True if at least one of the four token counts is None: missing, malformed or contradictory."""
        return self.usage_flaw is not None
