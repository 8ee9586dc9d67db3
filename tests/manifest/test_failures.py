"""Failure tables of earlier versions as manifests."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.base import schema
from arkbeam.manifest.batches import RowBatch, quote_row
from arkbeam.manifest.failures import list_failed_rows
from arkbeam.manifest.options import ManifestOptions

URL = "https://h/a.png?id=1&X-Amz-Signature=s3cr3t&pwd=s3cr3t"


@pytest.mark.parametrize(
    "original", [f'{{"image":"{URL}"}}', f'{{"image":"{URL.replace("s3cr3t&", "***&")}"}}', '{"image":"***"}']
)
def test_a_row_is_found_although_an_earlier_version_masked_less(original: str, tmp_path: Path) -> None:
    """An original with a secret that is masked today still names its row; an original of another row does not."""
    line = f'{{"image":"{URL}"}}'.encode()
    row = {"manifest": "rows.jsonl", "row": 0, "id": "a", "original": original, "code": "c", "message": "m"}
    table = pa.Table.from_pylist([row], schema=schema.FAILURES)
    pq.write_table(table, tmp_path / "f.parquet")
    found = list_failed_rows("rows.jsonl", [str(tmp_path / "f.parquet")], ManifestOptions(uris=("x",)))
    batch = RowBatch()
    batch.add({"image": URL}, line, len(line))
    assert "s3cr3t" not in (quote_row(batch, 0) or "")
    found.pick(batch, 0)
    assert batch.rows == [None if "***" in original and "h/a" not in original else {"image": URL}]
