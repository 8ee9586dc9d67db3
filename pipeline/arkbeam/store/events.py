"""Events: attempts that were paid but gave no vector, and requests that the service rejected permanently."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base import schema
from arkbeam.base.records import Failure, Usage
from arkbeam.store.layout import events_folder
from arkbeam.store.segments import Attempt, attempt_columns, read_columns, usage_columns, write_hashed

REJECTED_COLUMNS = ("kind", *schema.REJECTED.names)


class EventKind(StrEnum):
    """What happened to the attempt."""

    UNUSABLE = "unusable"  # a reply with status 200 but no usable vector: paid
    REJECTED = "refused"  # the service will never accept this request: not paid, and not sent again
    # Sent, but the reply did not arrive, was lost with its process, or was damaged in the store: counts as paid.
    LOST = "lost"
    BOUGHT = "ok"  # paid, and its vector is in a segment; only in the events that compaction has gathered


@dataclass(frozen=True, slots=True)
class Event:
    """One attempt for a fingerprint that gave no vector."""

    kind: EventKind
    attempt: Attempt
    failure: Failure
    usage: Usage = Usage()
    request_id: str | None = None
    model: str | None = None
    created: int | None = None

    @property
    def paid(self) -> bool:
        """True if the account is billed for the attempt, or may be."""
        return self.kind is not EventKind.REJECTED


def events_table(events: Sequence[Event]) -> pa.Table:
    """Build an EVENTS table."""
    columns = {
        "fingerprint": pa.array([event.attempt.fingerprint for event in events], schema.FINGERPRINT),
        "kind": [event.kind.value for event in events],
        "paid": [event.paid for event in events],
        "code": [event.failure.code for event in events],
        "message": [event.failure.message for event in events],
        "request_id": [event.request_id for event in events],
        "model": [event.model for event in events],
        "created": pa.array([event.created for event in events], schema.CREATED.type),
        **attempt_columns([event.attempt for event in events]),
        **usage_columns([event.usage for event in events]),
    }
    return pa.table([columns[name] for name in schema.EVENTS.names], schema=schema.EVENTS)


def write_events(store_uri: str, run: str, segment: int, events: Sequence[Event]) -> str:
    """Write events to a new file, completely or not at all; return its URI."""
    return write_hashed(events_folder(store_uri, run), segment, events_table(events))


def read_rejected(uri: str) -> pa.Table:
    """Return the permanent rejections in an event file as a REJECTED table."""
    table = read_columns(uri, REJECTED_COLUMNS)
    rejected = table.filter(pc.equal(table.column("kind"), EventKind.REJECTED.value))
    return rejected.select(schema.REJECTED.names).cast(schema.REJECTED)
