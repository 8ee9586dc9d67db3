"""Runs of the whole product on an engine, against an emulator: what was published, and what the server counted."""

import os
import signal
import subprocess
import threading
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
from scripts.benchmarks.quota_many import Seen, start_redis
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
_FROM_S = 60  # from here on the share of the quota counts: before, workers start
_ENDED = ".ended"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that has ended. `note` is `run.json`; None where the run published nothing.

    `usage`: the rows of `usage/`, which are the paid requests of all runs of the output. `used_share`: the paid share of the
    quota from the second minute to the last request; NaN if the run was shorter.
    """

    exit_code: int
    wall_s: float
    received: int
    paid: int
    paid_distinct: int
    refused: int
    most_a_minute: int
    used_share: float
    attempts: "Attempts"
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
            f"{self.attempts.blocks} / {self.attempts.repeated} / {self.attempts.handed_over}",
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
    "blocks / repeated / handed over",
    "wall",
)


@dataclass(frozen=True, slots=True)
class Attempts:
    """Attempts at blocks, by the files that they leave in the run's folder (`arkbeam.engine.attempts`)."""

    names: tuple[str, ...] = ()
    """`<run>/blocks/<block>/<number>.<process>`, and with `.ended`, in the order in which they appeared."""

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return len({name.rpartition("/")[0] for name in self.names})

    @property
    def repeated(self) -> int:
        """Attempts beyond the first one at each block."""
        return sum(not name.endswith(_ENDED) for name in self.names) - self.blocks

    @property
    def handed_over(self) -> int:
        """Attempts that ended after a newer one had begun: their process was alive beside the retry."""
        return sum(self._is_late(at, name) for at, name in enumerate(self.names) if name.endswith(_ENDED))

    def _is_late(self, at: int, ended: str) -> bool:
        own, folder = ended.removesuffix(_ENDED), ended.rpartition("/")[0]
        earlier = [name for name in self.names[:at] if name.rpartition("/")[0] == folder]
        return any(name > own and not name.endswith(_ENDED) for name in earlier)


@dataclass(slots=True)
class Trial:
    """A site with an emulator, and the command that runs its config with some arguments of Beam."""

    site: Site
    url: str
    rpm: int
    texts: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    store: Path = field(default_factory=Path)
    """Where the files of the store are, also of one on an S3 server."""
    _began_s: float = field(default_factory=time.monotonic)
    _names: dict[str, None] = field(default_factory=dict)  # in order

    @contextmanager
    def submit(self, beam: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
        """Start a run; it is killed at the end of the block if it still runs."""
        command = [*self.site.command(), *(["--", *beam] if beam else [])]
        with (self.site.folder / "run.log").open("ab") as log:
            process = start_child(command, self.site.folder, log.fileno(), log.fileno(), **self.environment)
        threading.Thread(target=self._watch, args=(process,), daemon=True).start()
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def again(self) -> "Trial":
        """Return the same trial, with the time and the attempts of a run that begins now."""
        return Trial(self.site, self.url, self.rpm, self.texts, self.environment, self.store)

    def _watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Note the attempts at blocks, whose files are removed at the end of the run."""
        while process.poll() is None:
            found = sorted(self.store.glob("runs/*/blocks/*-*/*"))
            self._names |= {path.relative_to(self.store).as_posix(): None for path in found}
            time.sleep(_POLL_S)

    def wait_for_paid(self, paid: int, process: "subprocess.Popen[bytes]") -> None:
        """Wait until so many requests are paid. Raise BenchError if the run ends before, or takes too long."""
        while int(read_stats(self.url)["paid"]) < paid:
            if process.poll() is not None or self.age_s > RUN_S:
                raise BenchError(f"the run ended before {paid:,} were paid: see {self.site.folder / 'run.log'}")
            time.sleep(_POLL_S)

    def wait_for_retry(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait until a block is worked on again. Raise BenchError if the run ends before, or takes too long."""
        while Attempts(tuple(self._names)).repeated == 0:
            if process.poll() is not None or self.age_s > RUN_S:
                raise BenchError(f"no block was worked on again: see {self.site.folder / 'run.log'}")
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
        seen = Seen.of(stats) if received else Seen((), (), ())
        used = seen.utilisation(self.rpm, _FROM_S, len(seen.paid))
        attempts = Attempts(tuple(self._names))
        outcome = Outcome(exit_code, wall_s, received, paid, distinct, refused, seen.most_a_minute, used, attempts)
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
def open_trial(folder: Path, rows: int, rpm: int, *, s3: bool = False, redis: bool = False) -> Iterator[Trial]:
    """Make a site with texts, and an emulator with a quota, for the length of the block.

    `s3`: the store is on an S3 server. Until the end of the block the environment of this process has its address, for
    processes that are started here. `redis`: the quota is shared through a Redis.
    """
    site, texts = Site(folder), list(make_texts(rows))
    emulator = EmulatorOptions(rpm=rpm, refusals_count=True, latency_ms=LATENCY_MS)
    with ExitStack() as stack:
        url = stack.enter_context(start_emulator(emulator))
        store, environment, kept = {"uri": str(site.store), "flush_rows": FLUSH_ROWS}, {}, site.store
        if s3:
            (folder / "s3" / BUCKET).mkdir(parents=True)
            environment = credentials(stack.enter_context(start_stand_in(folder / "s3", S3_LATENCY_MS)))
            environment |= {"AWS_EC2_METADATA_DISABLED": "true"}
            store["uri"], kept = f"s3://{BUCKET}/store", folder / "s3" / BUCKET / "store"
            stack.enter_context(_in_environment(environment))
        quota: dict[str, object] = {"rpm": rpm, "tpm": UNLIMITED_TPM, "headroom": 0.98}
        if redis:
            folder.mkdir(parents=True, exist_ok=True)
            quota["redis_url"] = stack.enter_context(start_redis(folder))
        site.write_config(url, quota=quota, limits={"requests_in_flight": IN_FLIGHT}, store=store)
        write_texts(site.manifest, texts)
        yield Trial(site, url, rpm, texts, environment, kept)


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
