"""`report.html` of an output: written in the commit of a run, and again by `arkbeam report`."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from arkbeam.base.errors import OutputInUse
from arkbeam.base.files import read_if_exists, remove_file, writing
from arkbeam.base.uris import join
from arkbeam.manifest.options import ReadContext
from arkbeam.outputs.facts import digest_files
from arkbeam.outputs.originals import Source
from arkbeam.outputs.published import Published
from arkbeam.stages.spec import RunSpec
from arkbeam.store.claim import check_claim

_log = logging.getLogger(__name__)
REPORT = "report.html"
_HEAD_BYTES = 2_048


def publish_page(note: Mapping[str, Any], spec: RunSpec) -> None:
    """Write the page of a run that is about to be complete. `note`: the content of `run.json`.

    A run that sent nothing keeps the page of the same files. A page that can't be made or written is a warning: then
    there is no page, and `arkbeam report` makes one. Raise OutputInUse if this run has lost its claim on the output.
    """
    uri = join(spec.run.output_uri, REPORT)
    try:
        if not spec.report:
            remove_file(uri)
        elif note["requests_sent"] or not _is_current(uri, note):
            context = ReadContext(spec.run.service, spec.model, spec.media)
            page = _make(Published.of(spec.run.output_uri, note), Source(spec.manifest, context))
            with writing(uri, check=partial(check_claim, spec.run.output_uri, spec.run.name)) as path:
                path.write_bytes(page)
    except OutputInUse:
        raise
    except Exception as error:  # noqa: BLE001 - the output is complete without a page
        _log.warning("%s was not written: %s: %s; make it with `arkbeam report`", REPORT, type(error).__name__, error)
        check_claim(spec.run.output_uri, spec.run.name)  # the page may be that of the run that has the claim now
        _remove_old(uri)


def write_page(output: Published, source: Source | None) -> str:
    """Make the page of a complete output again; return its URI. Raise StoreError."""
    uri = join(output.uri, REPORT)
    page = _make(output, source)
    with writing(uri) as path:
        path.write_bytes(page)
    return uri


def _make(output: Published, source: Source | None) -> bytes:
    from arkbeam.outputs.page import make_page  # noqa: PLC0415 - matplotlib takes half a second to import

    return make_page(output, source)


def _is_current(uri: str, note: Mapping[str, Any]) -> bool:
    """Return True if there is a page, and it describes the same files."""
    head = read_if_exists(uri, _HEAD_BYTES)
    return head is not None and f'"{digest_files(note)}"'.encode() in head


def _remove_old(uri: str) -> None:
    """Remove the page of earlier files. If that fails too, the page stays: its numbers show that it is an old one."""
    try:
        remove_file(uri)
    except Exception as error:  # noqa: BLE001 - as above
        _log.warning("the old %s can't be removed: %s", REPORT, error)
