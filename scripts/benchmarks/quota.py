"""How much of the quota is used, and whether the service has to refuse: a minute at 200 ms latency, seen by the server.

As many rows as the quota allows a minute can never be refused: a sliding minute holds them all. So a second run with
half as many new rows follows at once, into a minute that is still full of the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.emulator.options import EmulatorOptions
from pipeline.emulator.parts import TextPart
from pipeline.emulator.serve import start_emulator
from pipeline.emulator.usage import count_parts
from scripts.benchmarks.runs import UNLIMITED_RPM, UNLIMITED_TPM, Site, read_stats
from scripts.benchmarks.table import Bench, Figure, Size, at_least, at_most
from scripts.benchmarks.texts import make_mixed_texts, make_texts, write_texts

ROWS_PER_MINUTE = 600
HEADROOM = 0.98
LATENCY_MS = 200.0
ASKED = 0.94
ROWS = {Size.FULL: 600, Size.QUICK: 60, Size.TINY: 12}


@dataclass(frozen=True, slots=True)
class _Spent:
    """What the server let in, from its first paid request to its last."""

    requests: int
    tokens: int
    minutes: float
    refused: int

    @classmethod
    def of(cls, stats: dict[str, Any]) -> "_Spent":
        minutes = (stats["last_paid_s"] - stats["first_paid_s"]) / 60
        return cls(stats["paid"], stats["tokens"]["total"], minutes, stats["refused"])

    def share(self, amount: int, per_minute: int) -> float:
        """Return an amount's share of the quota. Between n requests are n - 1 gaps: the last one's cost is not in."""
        return amount * (1 - 1 / self.requests) / self.minutes / per_minute


def measure_requests(bench: Bench) -> list[Figure]:
    """Share of the requests per minute that 600 rows use at 200 ms latency, and what is refused."""
    texts = list(make_texts(ROWS[bench.size] * 3 // 2))
    return _measure(bench, "quota_rpm", texts, rpm=ROWS_PER_MINUTE, tpm=None)


def measure_tokens(bench: Bench) -> list[Figure]:
    """The same where the tokens per minute bind: 600 rows of 2 to 120 words."""
    rows = ROWS[bench.size]
    texts = list(make_mixed_texts(rows * 3 // 2))
    tokens = sum(count_parts([TextPart(text)], None).total_tokens or 0 for text in texts[:rows])
    return _measure(bench, "quota_tpm", texts, rpm=None, tpm=tokens * ROWS_PER_MINUTE // rows)


def _measure(bench: Bench, name: str, texts: Sequence[str], *, rpm: int | None, tpm: int | None) -> list[Figure]:
    rows = ROWS[bench.size]
    quota = {"rpm": rpm or UNLIMITED_RPM, "tpm": tpm or UNLIMITED_TPM, "headroom": HEADROOM}
    site = Site(bench.folder / name)
    emulator = EmulatorOptions(rpm=rpm, tpm=tpm, refusals_count=True, latency_ms=LATENCY_MS)
    with start_emulator(emulator) as url:
        site.write_config(url, quota=quota)
        write_texts(site.manifest, texts[:rows])
        site.run()
        spent, note = _Spent.of(read_stats(url)), site.note()
        bench.say(f"{rows} rows: {spent.minutes * 60:.1f} s from the first paid request to the last")
        write_texts(site.manifest, texts)
        site.run()
        after = read_stats(url)
        bench.say(f"{len(texts) - rows} more right after: {after['refused']} refused")
    share = spent.share(spent.requests, rpm) if rpm else spent.share(spent.tokens, tpm or 1)
    said = note["quota"]
    refused = (
        f"{spent.refused} in the first run; {after['refused'] - spent.refused} in one of {len(texts) - rows} more rows"
    )
    return [
        Figure(
            name,
            f"used share of {'rpm' if rpm else 'tpm'} {rpm or tpm:,}",
            f"{share:.1%}",
            f"≥ {ASKED:.0%}",
            at_least(share, ASKED),
            f"at the server; run.json says {said['utilisation']:.1%} of {said['binding']}; "
            f"{rows} rows, {spent.tokens:,} tokens in {spent.minutes * 60:.1f} s, headroom {HEADROOM}",
        ),
        Figure(name, "refused", f"{after['refused']}", "0", at_most(after["refused"], 0), f"{refused} right after"),
    ]
