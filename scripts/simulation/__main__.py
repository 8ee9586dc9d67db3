"""The command line of the simulator."""

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from scripts.simulation.scenarios import SCENARIOS, ScenarioResult, simulate

_EPILOG = "Scenarios: " + "; ".join(f"{name}: {scenario.title}" for name, scenario in SCENARIOS.items()) + "."


def results_table(results: dict[str, ScenarioResult]) -> Table:
    """Lay out all results beside what is asked."""
    table = Table("scenario", "", "utilisation", "refused", "most in 60 s", "in flight", "found", "", title="simulated")
    for name, result in results.items():
        scenario = SCENARIOS[name]
        verdict = "[green]met[/]" if result.meets(scenario) else "[bold red]missed[/]"
        found = [f"{result.found_rpm:,} rpm"] if result.found_rpm else []
        found += [f"{result.found_tpm:,} tpm"] if result.found_tpm else []
        table.add_row(
            name,
            scenario.title,
            _beside(f"{result.utilisation:.1%}", "≥", scenario.asked),
            _beside(f"{result.refused:.2%}", "≤", scenario.refused_max),
            f"{result.most:.1%}",
            f"{result.in_flight_most}",
            " ".join(found),
            verdict,
        )
    return table


def _beside(measured: str, sign: str, asked: float | None) -> str:
    return measured if asked is None else f"{measured} ({sign} {asked:.4g})"


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="SCENARIO", help="Scenarios; none means all.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other accidents.")] = 0,
) -> None:
    """Run the pacing against models of the service, in virtual time, and print how it did. Utilisation is from minute 2 on."""
    chosen = names or list(SCENARIOS)
    unknown = [name for name in chosen if name not in SCENARIOS]
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(SCENARIOS)}")
    results = {name: simulate(SCENARIOS[name], seed) for name in chosen}
    Console(width=None if sys.stdout.isatty() else 160).print(results_table(results))
    raise typer.Exit(0 if all(result.meets(SCENARIOS[name]) for name, result in results.items()) else 1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog=_EPILOG)(main)
    app(prog_name="scripts/simulate_quota")
