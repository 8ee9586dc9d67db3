"""The fixed cost of a run: 100 rows, from the start of the process to its exit."""

from statistics import median

from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import start_emulator

from scripts.benchmarks.runs import Site
from scripts.benchmarks.table import Bench, Figure, Size, at_most
from scripts.benchmarks.texts import make_texts, write_texts

ROWS = 100
GOAL_S = 3.0
TIMES = {Size.FULL: 5, Size.QUICK: 3, Size.TINY: 1}


def measure(bench: Bench) -> list[Figure]:
    """Wall time of a run of 100 rows against a running emulator: all bought, and all owned."""
    bought, owned = [], []
    with start_emulator(EmulatorOptions()) as url:
        for number in range(TIMES[bench.size]):
            site = Site(bench.folder / str(number))
            site.write_config(url)
            write_texts(site.manifest, make_texts(ROWS, seed=number))
            bought.append(site.run().wall_s)
            owned.append(site.run().wall_s)
            bench.say(f"{ROWS} rows: {bought[-1]:.2f} s, again with all owned: {owned[-1]:.2f} s")
    return [
        _figure("100 rows, all bought", bought),
        _figure("100 rows, all owned", owned),
    ]


def _figure(name: str, seconds: list[float]) -> Figure:
    middle = median(seconds)
    each = ", ".join(f"{one:.2f}" for one in seconds)
    return Figure("fixed", name, f"{middle:.2f} s", f"goal {GOAL_S:.0f} s", at_most(middle, GOAL_S), f"each: {each}")
