"""Valid and invalid options of the emulator."""

import json

import pytest
from arkbeam.base.errors import ConfigError
from arkbeam.emulator.options import EmulatorOptions, FaultShares, QuotaWindow, read_options, write_options


def test_options_survive_json() -> None:
    """Options are the same after conversion to JSON and back."""
    options = EmulatorOptions(
        rpm=600,
        window=QuotaWindow.CALENDAR,
        faults=FaultShares(nan=0.25),
        endpoints={"ep-1": "doubao-embedding-vision-250615"},
    )
    assert read_options(json.loads(json.dumps(write_options(options)))) == options
    assert read_options({}) == EmulatorOptions()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rmp": 1}, "rmp"),
        ({"faults": {"nan": 0.1, "sad": 0.2}}, r"faults\.sad"),
        ({"faults": {"nan": 1.1}}, "nan"),
        ({"faults": {"nan": 0.6, "hang": 0.6}}, "more than 1"),
        ({"window": "hourly"}, "window"),
        ({"rpm": 0}, "rpm"),
        ({"tpm": -1}, "tpm"),
        ({"latency_ms": -1}, "latency_ms"),
        ({"stop_after": -1}, "stop_after"),
        ({"stop_code": "Nonsense"}, "stop_code"),
    ],
)
def test_options_that_cannot_be(values: dict[str, object], said: str) -> None:
    """An invalid option is rejected with its name."""
    with pytest.raises(ConfigError, match=said):
        read_options(values)
