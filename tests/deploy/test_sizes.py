"""The sizes on paper in `configs/deploy/README.md` are what its formulas give with this version's defaults."""

import re
from pathlib import Path

from arkbeam.ark.models import ModelOptions
from arkbeam.ark.wire import ModelSpec
from arkbeam.base import schema
from arkbeam.quota.options import QuotaOptions
from arkbeam.store.layout import StoreOptions

PAGE = Path(__file__).parents[2] / "configs" / "deploy" / "README.md"
KEY_BYTES, INDEX_BYTES, ROW_BYTES, FILE_BYTES = 32, 19, 3_044, 128 * 2**20
TEXT_TOKENS, IMAGE_TOKENS = 22, 1_312


def test_sizes_are_those_of_the_formulas() -> None:
    """Each cell follows from the number of rows, the default quota, the list prices and the measured bytes."""
    model = ModelSpec.of(ModelOptions("doubao-embedding-vision-251215")).capabilities
    a_minute = [min(model.rpm, model.tpm / tokens) * QuotaOptions().headroom for tokens in (TEXT_TOKENS, IMAGE_TOKENS)]
    cny = (TEXT_TOKENS * model.price_text_cny_per_million, IMAGE_TOKENS * model.price_image_cny_per_million)
    lines = re.findall(r"^\| ([\d,]+ \| [\d.]+ GB .*) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        cells = [cell.strip() for cell in line.split("|")]
        rows = int(cells[0].replace(",", ""))
        assert cells[1:] == [
            f"{rows * KEY_BYTES / 1e9:.2f} GB",
            f"{rows * INDEX_BYTES / 1e9:.2f} GB",
            f"{rows * ROW_BYTES / 1e9:,.0f} GB",
            f"{rows // StoreOptions('store').flush_rows:,}",
            f"{-(-rows * ROW_BYTES // FILE_BYTES):,}",
            f"{rows / a_minute[0] / 60:,.1f}",
            f"{rows * cny[0] / 1e6:,.0f}",
            f"{rows / a_minute[1] / 60:,.1f}",
            f"{rows * cny[1] / 1e6:,.0f}",
        ]


def test_a_key_has_the_bytes_of_the_page() -> None:
    """The columns that are shuffled have 32 bytes a row."""
    assert sum(field.type.bit_width for field in schema.KEYS) == KEY_BYTES * 8
