"""The command line of the simulator."""

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from scripts.simulation.regimes import REGIMES, Outcome, simulate

_EPILOG = "Regimes: " + "; ".join(f"{name}: {regime.title}" for name, regime in REGIMES.items()) + "."


def outcomes_table(outcomes: dict[str, Outcome]) -> Table:
    """Lay out all outcomes beside what is asked."""
    table = Table("regime", "", "utilisation", "refused", "most in 60 s", "in flight", "found", "", title="simulated")
    for name, outcome in outcomes.items():
        regime = REGIMES[name]
        verdict = "[green]met[/]" if outcome.meets(regime) else "[bold red]missed[/]"
        found = [f"{outcome.found_rpm:,} rpm"] if outcome.found_rpm else []
        found += [f"{outcome.found_tpm:,} tpm"] if outcome.found_tpm else []
        table.add_row(
            name,
            regime.title,
            _beside(f"{outcome.utilisation:.1%}", "≥", regime.asked),
            _beside(f"{outcome.refused:.2%}", "≤", regime.refused_max),
            f"{outcome.most:.1%}",
            f"{outcome.in_flight_most}",
            " ".join(found),
            verdict,
        )
    return table


def _beside(measured: str, sign: str, asked: float | None) -> str:
    return measured if asked is None else f"{measured} ({sign} {asked:.4g})"


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="REGIME", help="Regimes; none means all.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other accidents.")] = 0,
) -> None:
    """Run the pacing against models of the service, in virtual time, and print how it did. Utilisation is from minute 2 on."""
    chosen = names or list(REGIMES)
    unknown = [name for name in chosen if name not in REGIMES]
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(REGIMES)}")
    outcomes = {name: simulate(REGIMES[name], seed) for name in chosen}
    Console(width=None if sys.stdout.isatty() else 160).print(outcomes_table(outcomes))
    raise typer.Exit(0 if all(outcome.meets(REGIMES[name]) for name, outcome in outcomes.items()) else 1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog=_EPILOG)(main)
    app(prog_name="scripts/simulate_quota")
