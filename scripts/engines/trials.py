"""Runs of the whole product on an engine, against an emulator: what was published, and what the server counted."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import start_emulator

from scripts.benchmarks.media import BUCKET, credentials
from scripts.benchmarks.outputs import Checked, check_vectors, sum_usage
from scripts.benchmarks.quota_many import Seen
from scripts.benchmarks.runs import UNLIMITED_TPM, BenchError, Site, read_stats, start_child
from scripts.benchmarks.s3_stand_in import start_stand_in
from scripts.benchmarks.texts import make_texts, write_texts

LATENCY_MS = 300.0
S3_LATENCY_MS = 30.0
IN_FLIGHT, FLUSH_ROWS = 32, 256
RUN_S = 480.0
"""A run that takes longer is killed."""
_QUIET_S = 8.0  # how long no request may come before the counts are read: what still runs may send
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that has ended. `note` is `run.json`; None where the run published nothing.

    `usage`: the rows of `usage/`, which are the paid requests of all runs of the output.
    """

    exit_code: int
    wall_s: float
    received: int
    paid: int
    paid_distinct: int
    refused: int
    most_a_minute: int
    checked: Checked | None = None
    usage: int | None = None
    note: Mapping[str, Any] | None = None

    @property
    def paid_twice(self) -> int:
        """Paid requests beyond one for each row."""
        return self.paid - self.paid_distinct

    def cells(self) -> list[str]:
        """Return the cells of `COLUMNS`."""
        note = self.note or {}
        sums = note.get("all_runs", {})
        said = (sums.get("paid_twice"), note.get("requests_sent"), note.get("lost"))
        return [
            f"{self.exit_code}",
            "none" if self.checked is None else _describe(self.checked),
            f"{self.paid:,}",
            f"{self.paid_twice:,}",
            " / ".join("-" if value is None else f"{value:,}" for value in said),
            "-" if self.usage is None else f"{self.usage - self.paid:+,}",
            f"{self.refused:,}",
            f"{self.most_a_minute:,}",
            f"{self.wall_s:.0f} s",
        ]


COLUMNS = (
    "exit",
    "rows",
    "paid",
    "paid twice",
    "`run.json`: paid twice / sent / lost",
    "`usage/` less the bill",
    "refused",
    "most in 60 s",
    "wall",
)


@dataclass(slots=True)
class Trial:
    """A site with an emulator, and the command that runs its config with some arguments of Beam."""

    site: Site
    url: str
    texts: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    _began_s: float = field(default_factory=time.monotonic)

    @contextmanager
    def submit(self, beam: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
        """Start a run; it is killed at the end of the block if it still runs."""
        command = [*self.site.command(), *(["--", *beam] if beam else [])]
        with (self.site.folder / "run.log").open("ab") as log:
            process = start_child(command, self.site.folder, log.fileno(), log.fileno(), **self.environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def wait_for_paid(self, paid: int, process: "subprocess.Popen[bytes]") -> None:
        """Wait until so many requests are paid. Raise BenchError if the run ends before, or takes too long."""
        while int(read_stats(self.url)["paid"]) < paid:
            if process.poll() is not None or self.age_s > RUN_S:
                raise BenchError(f"the run ended before {paid:,} were paid: see {self.site.folder / 'run.log'}")
            time.sleep(_POLL_S)

    def wait_for_end(self, process: "subprocess.Popen[bytes]") -> int:
        """Wait for the end of a run; kill it after `RUN_S`. Return its exit code."""
        try:
            return process.wait(max(1.0, RUN_S - self.age_s))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return process.wait()

    @property
    def age_s(self) -> float:
        """Seconds since the trial began."""
        return time.monotonic() - self._began_s

    def conclude(self, exit_code: int) -> Outcome:
        """Wait until nothing is sent any more; compare the output with the manifest and count what the server has seen."""
        wall_s = self.age_s
        stats = self._wait_until_quiet()
        received, paid, distinct, refused = (
            int(stats[name]) for name in ("received", "paid", "paid_distinct", "refused")
        )
        most = Seen.of(stats).most_a_minute if received else 0
        outcome = Outcome(exit_code, wall_s, received, paid, distinct, refused, most)
        output = self.site.output
        if not (output / "_SUCCESS").exists():
            return outcome
        return replace(
            outcome, checked=check_vectors(output, self.texts), usage=sum_usage(output)[0], note=self.site.note()
        )

    def _wait_until_quiet(self) -> dict[str, Any]:
        stats, since_s = read_stats(self.url), time.monotonic()
        while time.monotonic() - since_s < _QUIET_S:
            time.sleep(_POLL_S)
            newer = read_stats(self.url)
            if newer["received"] > stats["received"]:
                since_s = time.monotonic()
            stats = newer
        return stats


@contextmanager
def open_trial(folder: Path, rows: int, rpm: int, *, s3: bool = False) -> Iterator[Trial]:
    """Make a site with texts, and an emulator with a quota, for the length of the block.

    `s3`: the store is on an S3 server. Until the end of the block the environment of this process has its address, for
    processes that are started here.
    """
    site, texts = Site(folder), list(make_texts(rows))
    emulator = EmulatorOptions(rpm=rpm, refusals_count=True, latency_ms=LATENCY_MS)
    with ExitStack() as stack:
        url = stack.enter_context(start_emulator(emulator))
        store, environment = {"uri": str(site.store), "flush_rows": FLUSH_ROWS}, {}
        if s3:
            (folder / "s3" / BUCKET).mkdir(parents=True)
            environment = credentials(stack.enter_context(start_stand_in(folder / "s3", S3_LATENCY_MS)))
            environment |= {"AWS_EC2_METADATA_DISABLED": "true"}
            store["uri"] = f"s3://{BUCKET}/store"
            stack.enter_context(_in_environment(environment))
        quota = {"rpm": rpm, "tpm": UNLIMITED_TPM, "headroom": 0.98}
        site.write_config(url, quota=quota, limits={"requests_in_flight": IN_FLIGHT}, store=store)
        write_texts(site.manifest, texts)
        yield Trial(site, url, texts, environment)


@contextmanager
def _in_environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            with suppress(KeyError):
                del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _describe(checked: Checked) -> str:
    if checked.is_right:
        return f"{checked.rows:,} right"
    return f"{checked.rows:,}: {checked.wrong} wrong, {checked.missing} missing, {checked.repeated} repeated"


def table_line(cells: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
