"""Rows of a batch, as they are quoted in failure rows."""

from arkbeam.base.records import Failure
from arkbeam.manifest.batches import RawRow, RowBatch, quote_row, quote_rows
from hypothesis import example, given
from hypothesis import strategies as st

_URL = "https://h/a?Signature=s3cr3t"
_TEXTS = st.sampled_from(["", "a", "é", "和", "/", ":\\/\\/", "://", _URL, "x" * 65_535, "和" * 30_000])
_LINES = st.lists(_TEXTS | st.text(max_size=5)).map("".join)
_ORIGINALS = st.one_of(
    st.none(), _LINES, _LINES.map(lambda line: line.encode("utf-8", "surrogatepass")), st.binary(max_size=9)
)
_CELLS: st.SearchStrategy[RawRow] = st.one_of(
    st.none(), st.just(Failure("c", "m")), st.dictionaries(st.sampled_from("ab"), _LINES)
)


@given(st.lists(st.tuples(_CELLS, _ORIGINALS), max_size=4))
@example([(None, b'{"a":1}'), (None, b"\xff")])
@example([({"a": 1}, b'{"a":1}'), ({"a": _URL}, None), (None, _URL.encode()), (None, "x" * 70_000)])
def test_rows_are_quoted_together_as_each_of_them_is(rows: list[tuple[RawRow, bytes | str | None]]) -> None:
    """`quote_rows` agrees with `quote_row`, also for lines that are long, have URLs or are not valid UTF-8."""
    batch = RowBatch([cells for cells, _ in rows], [original for _, original in rows])
    positions = range(len(rows))
    assert quote_rows(batch, positions).to_pylist() == [quote_row(batch, position) for position in positions]
