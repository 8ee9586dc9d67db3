"""Which model a name stood for when its vectors were bought: names and endpoints get re-pointed, and one output never mixes.

    <store>/models/<key>.json   {"name": …, "resolved": …, "seen": …}

`resolved` is the model whose vectors are taken as owned; `seen` is another one that the service answered with since.
"""

import hashlib
from dataclasses import asdict, dataclass

import orjson

from arkbeam.base.errors import StoreError
from arkbeam.base.files import exists, join, read_bytes, write_bytes
from arkbeam.base.records import ServiceKind


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """What a store knows of one name at one kind of service."""

    name: str
    resolved: str | None = None
    seen: str | None = None


def read_model(store_uri: str, service: ServiceKind, name: str) -> ModelRecord:
    """Read the record of a name; an empty one when nothing was bought by it yet.

    Raises: StoreError when the record is damaged.
    """
    uri = _uri(store_uri, service, name)
    if not exists(uri):
        return ModelRecord(name)
    try:
        return ModelRecord(**orjson.loads(read_bytes(uri)))
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{uri} is damaged ({error}): remove it to take the next answer's model as the right one"
        ) from None


def write_model(store_uri: str, service: ServiceKind, record: ModelRecord) -> None:
    """Write the record of a name."""
    write_bytes(_uri(store_uri, service, record.name), orjson.dumps(asdict(record)))


def _uri(store_uri: str, service: ServiceKind, name: str) -> str:
    key = hashlib.blake2b(f"{service.value} {name}".encode(), digest_size=8).hexdigest()
    return join(store_uri, "models", f"{key}.json")
