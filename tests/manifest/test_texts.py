"""The text of timestamps in time zones; `test_kept` has the texts of the other types."""

import pyarrow as pa
import pytest
from arkbeam.manifest.texts import text_array


@pytest.mark.parametrize(
    ("zone", "value", "text"),
    [
        ("UTC", 1_714_566_600_123, "2024-05-01T12:30:00.123+00:00"),
        ("Asia/Shanghai", 1_714_566_600_000, "2024-05-01T20:30:00+08:00"),
        ("Asia/Shanghai", -2_208_988_800_000, "1900-01-01T08:05:43+08:05:43"),
        ("America/New_York", -1, "1969-12-31T18:59:59.999-05:00"),
        ("America/New_York", 1_720_000_000_000, "2024-07-03T05:46:40-04:00"),
        ("-03:30", 0, "1969-12-31T20:30:00-03:30"),
        ("Asia/Shanghai", 10**14, "5138-11-16T17:46:40+08:00"),
        ("Asia/Shanghai", 253_402_300_800_000, "10000-01-01T08:00:00+08:00"),
        ("Nowhere/Unknown", 0, "1970-01-01T00:00:00Z"),
    ],
)
def test_timestamps_have_the_local_time_of_their_zone(zone: str, value: int, text: str) -> None:
    """As ISO 8601, also in years that Python does not know; in UTC if this machine does not know the zone."""
    assert text_array(pa.array([value, None], pa.timestamp("ms", zone))).to_pylist() == [text, None]
