"""Fill a store without buying: the store's own code writes the segments, with the fingerprints that a run computes.

Unless they are asked to differ, all vectors are equal, so that a million of them take little space on disk. Everything
else is as a run writes it.
"""

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from random import Random

import numpy as np
import pyarrow as pa
from arkbeam.ark.client import new_client_request_id
from arkbeam.base.records import ServiceKind, Usage
from arkbeam.base.replies import Reply
from arkbeam.base.uris import absolute
from arkbeam.emulator.replies import STAND_IN_SUFFIX, make_request_id
from arkbeam.emulator.vectors import embed
from arkbeam.manifest.fingerprint import Fingerprinter
from arkbeam.store.layout import new_run_name, segment_ids, uri_key
from arkbeam.store.model_record import ModelRecord, write_model
from arkbeam.store.segments import Attempt, Bought, segment_table, write_segment

from scripts.benchmarks.runs import MODEL, Site

SEGMENT_ROWS = 256
_TOKENS = 40


def own_texts(site: Site, texts: Iterable[str], dimensions: int) -> None:
    """Write a vector for each text to the site's store, as an earlier run of the same output would have done."""
    run, store_uri = new_run_name(uri_key(absolute(str(site.output))), time.time(), "0" * 8), absolute(str(site.store))
    write_model(store_uri, ServiceKind.STAND_IN, ModelRecord(MODEL, MODEL + STAND_IN_SUFFIX))
    for _ in write_run(store_uri, run, texts, dimensions):
        pass


def write_run(
    store_uri: str, run: str, texts: Iterable[str], dimensions: int, *, differ: bool = False
) -> Iterator[tuple[str, pa.Table]]:
    """Write a vector for each text to a store; yield each segment's URI and table."""
    fingerprinter = Fingerprinter(ServiceKind.STAND_IN, MODEL, dimensions)
    bought = _bought((fingerprinter.of_text(text, None, False) for text in texts), dimensions, differ)
    segments = segment_ids()
    while rows := list(islice(bought, SEGMENT_ROWS)):
        table = segment_table(rows, dimensions)
        yield write_segment(store_uri, run, next(segments), table), table


def _bought(fingerprints: Iterable[bytes], dimensions: int, differ: bool) -> Iterator[Bought]:
    vector, random = embed([("text", "owned")], dimensions=dimensions), np.random.default_rng(0)
    norm = np.float32(np.linalg.norm(vector.astype(np.float64)))
    usage = Usage(_TOKENS, _TOKENS, _TOKENS, 0)
    source, now_s = Random(0), time.time()
    for fingerprint in fingerprints:
        if differ:  # values that are exact in bfloat16, as the service's
            vector = (random.standard_normal(dimensions, np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
        request_id = make_request_id(int(now_s * 1000))
        reply = Reply(request_id, MODEL + STAND_IN_SUFFIX, int(now_s), vector, None, norm, usage, None, True)
        yield Bought(Attempt(fingerprint, new_client_request_id(now_s, source), 1, 1.0), reply)
