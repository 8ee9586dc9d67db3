"""`--take-over`: end the other runs of an output through the store, then let the caller claim it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from arkbeam.base.errors import OutputInUse
from arkbeam.base.redaction import redact_uri
from arkbeam.base.uris import is_local
from arkbeam.engine.outcomes import Stop, StopKind
from arkbeam.stages.embed.process import write_stop_of
from arkbeam.stages.spec import RunSpec
from arkbeam.store.claim import LEASE_S, describe_run, displace, is_locked
from arkbeam.store.leftovers import list_runs
from arkbeam.store.living import LOOK_S, Verdict, Watches

MARGIN_S = 120.0
"""How long another run may take to end, beyond the time that its requests in flight may take."""
SAY_S = 10.0


@dataclass(slots=True)
class TakeOver:
    """Ends the other runs of an output. `say` is given what happens, in lines for people."""

    spec: RunSpec
    say: Callable[[str], None]
    lease_s: float = LEASE_S
    margin_s: float = MARGIN_S
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _watches: Watches = field(init=False)
    _told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._watches = Watches(self.spec.store.uri, (), self.lease_s, self.clock, self.sleep, start_s=0.0)

    def run(self) -> None:
        """Tell each other run to stop, and wait until all have ended: their claim is free, and they show no sign of life.

        They change the output no more from the first moment on. Raise OutputInUse, which says what to do, if one does
        not end in time; StoreError.
        """
        began_s = said_s = self.clock()
        wait_s = self.margin_s + self.spec.limits.drain_s
        while living := self._look():
            now_s = self.clock()
            if now_s - began_s >= wait_s:
                raise OutputInUse(
                    f"{redact_uri(self.spec.run.output_uri)}: {living[0]} was told to stop and has not ended in"
                    f" {wait_s:.0f} s: cancel its job on its engine or end its processes, then run again; if it only"
                    " takes long, run again later"
                )
            if now_s - said_s >= SAY_S:
                said_s = now_s
                self.say(f"waiting for the end of {living[0]} ({now_s - began_s:.0f} s)")
            self.sleep(min(LOOK_S, self.lease_s / 10))

    def _look(self) -> list[str]:
        """Tell runs to stop that have not been told; return what still lives, in words."""
        store_uri, own = self.spec.store.uri, self.spec.run
        # Again and again: a mark that is just being renewed may replace ours.
        holder = displace(own.output_uri, own.name)
        others = [run for run in list_runs(store_uri, own.output_key) if run != own.name]
        for run in {*others, *([holder] if holder is not None else [])} - self._told:
            self._tell(run, has_folder=run in others)
        living = [run for run in others if self._watches.look(run) is not Verdict.DEAD]
        if is_local(own.output_uri) and is_locked(own.output_uri) and not living:
            return ["the run that holds its lock"]
        return [f"run {run}" for run in living]

    def _tell(self, run: str, *, has_folder: bool) -> None:
        self._told.add(run)
        self.say(f"ending {describe_run(run, time.time())}")
        if has_folder:
            message = f"run {self.spec.run.name} takes over the output of this run"
            write_stop_of(self.spec.store.uri, run, Stop(StopKind.INTERRUPTED, "taken_over", message))
