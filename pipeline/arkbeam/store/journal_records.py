r"""The records of a journal, as bytes.

Each begins with a line:

    g <segment>                     the segments up to this id were written before: begins a file, and may follow later
    s <client id> <fingerprint>     the request is sent, and may be billed from here on
    u <client id>                   it was not sent, or it is not billed
    p <client id> <cost>            it was billed, and the reply has no usable vector; `cost` is JSON
    r <client id> <crc> <bytes> <JSON>\n<the arrays of the reply>

A kill can cut the last record of a file, and a power cut can leave any bytes. What is no record is skipped up to the
next one. There is an empty line between two records, so that damage of the last byte of one spares the next. Earlier
versions wrote `p` for all replies, and neither `g` nor `r`.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from arkbeam.base import schema
from arkbeam.base.records import Failure, Usage
from arkbeam.base.replies import Reply, Sparse
from arkbeam.store.events import Event, EventKind
from arkbeam.store.segments import Attempt, Bought


@dataclass(slots=True)
class Journaled:
    """What the records of a process say. `replies` and `sent` are by client request id."""

    replies: dict[str, Bought] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)
    """The fingerprints of requests that may be billed, and have no usable reply."""
    costs: dict[str, list[Any]] = field(default_factory=dict)
    segment: int = 0
    """What the records tell of was stored, if it was, in files with ids above this one."""
    newest_segment: int = 0
    """No file of the process that was stored before the newest generation began has an id above this one."""
    damaged: int = 0
    """Damaged places that are followed by another record in their file."""

    def lost(self) -> list[Event]:
        """Return an event for each request that may be billed, and has no usable reply."""
        return [_lost_event(name, fingerprint, self.costs.get(name)) for name, fingerprint in self.sent.items()]


def first_record(segment: int) -> bytes:
    """Encode the first record of a file. `segment`: the last one that was stored when the file's generation began."""
    return b"\ng %016x\n" % segment


def sent_record(client_request_id: str, fingerprint: bytes) -> bytes:
    """Encode a request that is about to be sent."""
    return f"\ns {client_request_id} {fingerprint.hex()}\n".encode()


def unpaid_record(client_request_id: str) -> bytes:
    """Encode that a request is not billed."""
    return f"\nu {client_request_id}\n".encode()


def paid_record(
    client_request_id: str, request_id: str | None, model: str | None, created: int | None, usage: Usage
) -> bytes:
    """Encode the cost of a reply without a usable vector."""
    cost = orjson.dumps([request_id, model, created, _counts(usage)])
    return b"\np %s %s\n" % (client_request_id.encode(), cost)


def bought_record(bought: Bought) -> bytes:
    """Encode a usable reply and its attempt."""
    attempt, reply, sparse = bought.attempt, bought.reply, bought.reply.sparse
    arrays: list[NDArray[Any]] = [reply.dense]
    arrays += [] if sparse is None else [sparse.indices, sparse.values]
    arrays += [] if reply.multi is None else [reply.multi]
    fields = [
        attempt.fingerprint.hex(),
        attempt.attempts,
        attempt.latency_ms,
        reply.id,
        reply.model,
        reply.created,
        _counts(reply.usage),
        float(reply.norm),
        len(reply.dense),
        None if sparse is None else len(sparse.indices),
        None if reply.multi is None else len(reply.multi),
    ]
    payload = b"".join([array.tobytes() for array in arrays])
    name, details = attempt.client_request_id.encode(), b"%d %s" % (len(payload), orjson.dumps(fields))
    return b"\nr %s %08x %s\n%s\n" % (name, _checksum(name, details, payload), details, payload)


def read_records(files: Iterable[bytes]) -> Journaled:
    """Read the files of a process, in the order in which they were written."""
    found = Journaled()
    segments: list[int] = []
    for data in files:
        begins: list[int] = []
        at, is_garbled = 0, False
        while (end := data.find(b"\n", at)) >= 0:
            if end > at:
                after = _read_record(data, at, end, found, begins)
                found.damaged += is_garbled and after is not None
                is_garbled = after is None
                end = after or end
            at = end + 1
        segments.append(min(begins, default=0))
        found.newest_segment = max([found.newest_segment, *begins])
    found.segment = min(segments, default=0)
    return found


def _read_record(data: bytes, at: int, end: int, found: Journaled, begins: list[int]) -> int | None:
    """Read the record whose first line is from `at` to `end`. Return the place of its last newline; None if it is none."""
    kind, _, rest = data[at:end].partition(b" ")
    name, _, details = rest.partition(b" ")
    client_id = name.decode(errors="replace")
    try:
        if kind == b"s" and len(details) == 2 * schema.FINGERPRINT_BYTES:
            found.sent[client_id] = bytes.fromhex(details.decode())
        elif kind == b"u" and not details:
            found.sent.pop(client_id, None)
        elif kind == b"p" and details.endswith(b"]]"):
            _lost_event(client_id, bytes(schema.FINGERPRINT_BYTES), cost := orjson.loads(details))
            found.costs[client_id] = cost
        elif kind == b"g" and not details:
            begins.append(int(name, 16))
        elif kind == b"r":
            bought, end = _read_reply(data, end, name, details)
            found.replies[client_id] = bought
            found.sent.pop(client_id, None)
        else:
            return None
    except (ValueError, TypeError):
        return None
    return end


def _read_reply(data: bytes, end: int, name: bytes, details: bytes) -> tuple[Bought, int]:
    """Decode a reply whose first line ends at `end`; return it and the place of its last newline. Raise ValueError, TypeError."""
    checksum, _, details = details.partition(b" ")
    size, _, fields = details.partition(b" ")
    last = end + 1 + int(size)
    payload = data[end + 1 : last]
    if data[last : last + 1] != b"\n" or int(checksum, 16) != _checksum(name, details, payload):
        raise ValueError("the record is cut or damaged")
    fingerprint, attempts, latency_ms, request_id, model, created, counts, norm, dense, sparse, multi = orjson.loads(
        fields
    )
    arrays = _Arrays(payload)
    reply = Reply(
        id=request_id,
        model=model,
        created=created,
        dense=arrays.take(np.float32, dense),
        sparse=None if sparse is None else Sparse(arrays.take(np.uint32, sparse), arrays.take(np.float32, sparse)),
        norm=np.float32(norm),
        usage=Usage(*counts),
        usage_flaw=None,
        stand_in=False,
        multi=None if multi is None else arrays.take(np.float16, multi * dense).reshape(multi, dense),
    )
    return Bought(Attempt(bytes.fromhex(fingerprint), name.decode(), attempts, latency_ms), reply), last


@dataclass(slots=True)
class _Arrays:
    """Takes one array after the other from the bytes of a reply."""

    payload: bytes
    at: int = 0

    def take(self, kind: type[Any], count: int) -> NDArray[Any]:
        array = np.frombuffer(self.payload, kind, count, self.at)
        self.at += array.nbytes
        return array


def _checksum(name: bytes, details: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(b"%s %s" % (name, details)))


def _counts(usage: Usage) -> list[int | None]:
    return [usage.prompt_tokens, usage.total_tokens, usage.text_tokens, usage.image_tokens]


def _lost_event(client_request_id: str, fingerprint: bytes, cost: Sequence[Any] | None) -> Event:
    request_id, model, created, tokens = cost or (None, None, None, [None] * 4)
    failure = Failure("lost", "the process ended before it could store the reply")
    attempt = Attempt(fingerprint, client_request_id, 1, 0.0)
    return Event(EventKind.LOST, attempt, failure, Usage(*tokens), request_id, model, created)
