"""The model that a name resolved to when its vectors were bought.

Names and endpoints can be pointed to another model version, and one output must not mix the vectors of two versions.

    <store>/models/<key>.json   {"name": …, "resolved": …, "seen": …}

`resolved` is the model whose vectors count as owned; `seen` is a different one that the service has since replied with.
"""

import hashlib
from dataclasses import asdict, dataclass

import orjson

from arkbeam.base.errors import StoreError
from arkbeam.base.files import read_if_exists, write_bytes
from arkbeam.base.records import ServiceKind
from arkbeam.base.uris import join
from arkbeam.store.layout import models_folder


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """What a store knows about a model name at one kind of service."""

    name: str
    resolved: str | None = None
    seen: str | None = None


def read_model(store_uri: str, service: ServiceKind, name: str) -> ModelRecord:
    """Read the record of a name; an empty one if nothing was bought under it yet.

    Raise StoreError if the record is damaged.
    """
    uri = _uri(store_uri, service, name)
    data = read_if_exists(uri)
    if data is None:
        return ModelRecord(name)
    try:
        return ModelRecord(**orjson.loads(data))
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{uri} is damaged ({error}): remove it, and the model of the next reply is taken as the right one"
        ) from None


def write_model(store_uri: str, service: ServiceKind, record: ModelRecord) -> None:
    """Write the record of a name."""
    write_bytes(_uri(store_uri, service, record.name), orjson.dumps(asdict(record)))


def _uri(store_uri: str, service: ServiceKind, name: str) -> str:
    key = hashlib.blake2b(f"{service.value} {name}".encode(), digest_size=8).hexdigest()
    return join(models_folder(store_uri), f"{key}.json")
