"""Embed in Beam: one element is a block; the output is refs, rejections and stops, never vectors."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from arkbeam.beam.counters import count
from arkbeam.beam.plan import BOUGHT, REJECTED
from arkbeam.beam.read import ASIDE
from arkbeam.engine.outcomes import Stop
from arkbeam.stages.counters import Tally
from arkbeam.stages.embed.process import check_secrets, open_engine
from arkbeam.stages.embed.session import Outcomes, Session
from arkbeam.stages.inputs import whole_spec
from arkbeam.stages.plan import Block, split_buckets
from arkbeam.stages.presence import check_process
from arkbeam.stages.spec import RunSpec


class EmbedBlocks(beam.PTransform):
    """Send the rows of blocks.

    Output: (bucket, (BOUGHT, INDEX)), (bucket, (REJECTED, REJECTED)), and (ASIDE, Stop).
    """

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self._spec = spec

    def expand(self, blocks: PCollection[Block]) -> Any:
        """Spread the blocks over the workers, then embed them. Each bundle is a session.

        In one process, the blocks keep their order.
        """
        return blocks | "Spread" >> beam.Reshuffle() | "Embed" >> beam.ParDo(_EmbedBlocks(self._spec))


class _EmbedBlocks(beam.DoFn):
    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._session: Session | None = None

    def setup(self) -> None:
        check_process(self._spec, check_secrets)

    def start_bundle(self) -> None:
        self._close()  # of a bundle that the runner gave up
        self._session = None

    def process(self, block: Block) -> Iterator[Any]:
        if self._session is None:
            spec = whole_spec(self._spec)
            self._session = Session(spec, open_engine(spec))
        with self._closing():
            yield from _by_bucket(self._session.add(block), self._spec)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._session is None:
            return
        with self._closing():
            for outcome in _by_bucket(self._session.finish(), self._spec):
                yield WindowedValue(outcome, MIN_TIMESTAMP, [GlobalWindow()])
        self._session = None

    def teardown(self) -> None:
        self._close()

    @contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()


def _by_bucket(results: Iterable[Outcomes | Tally | Stop], spec: RunSpec) -> Iterator[tuple[int, Any]]:
    for result in results:
        if isinstance(result, Tally):
            count(result)
            continue
        if isinstance(result, Stop):
            yield ASIDE, result
            continue
        for kind, table in ((BOUGHT, result.index), (REJECTED, result.rejected)):
            for bucket, part in split_buckets(table, spec.buckets):
                yield bucket, (kind, part)
