"""The command line of the simulator."""

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from scripts.simulation.scenarios import SCENARIOS, ScenarioResult, simulate

_EPILOG = "Scenarios: " + "; ".join(f"{name}: {scenario.title}" for name, scenario in SCENARIOS.items()) + "."


def results_table(results: dict[str, ScenarioResult]) -> Table:
    """Return a table of all results, each beside its target."""
    heads = (
        "scenario",
        "description",
        "utilisation",
        "refused",
        "max in 60 s",
        "max in flight",
        "limit found",
        "result",
    )
    table = Table(*heads, title="simulated (in brackets: target)")
    for name, result in results.items():
        scenario = SCENARIOS[name]
        verdict = "[green]met[/]" if result.meets(scenario) else "[bold red]missed[/]"
        found = [f"{result.found_rpm:,} rpm"] if result.found_rpm else []
        found += [f"{result.found_tpm:,} tpm"] if result.found_tpm else []
        table.add_row(
            name,
            scenario.title,
            _beside(f"{result.utilisation:.1%}", "≥", scenario.utilisation_min),
            _beside(f"{result.refused:.2%}", "≤", scenario.refused_max),
            f"{result.most:.1%}",
            f"{result.in_flight_most}",
            " ".join(found),
            verdict,
        )
    return table


def _beside(measured: str, sign: str, target: float | None) -> str:
    return measured if target is None else f"{measured} ({sign} {target:.4g})"


def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="SCENARIO", help="Names of scenarios. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.")] = 0,
) -> None:
    """Run the pacing against models of the service, in virtual time, and print the results beside their targets.

    Utilisation is measured from minute 2 on. The exit code is 1 if a scenario misses a target.
    """
    chosen = names or list(SCENARIOS)
    unknown = [name for name in chosen if name not in SCENARIOS]
    if unknown:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}. Choose from {', '.join(SCENARIOS)}")
    results = {name: simulate(SCENARIOS[name], seed) for name in chosen}
    Console(width=None if sys.stdout.isatty() else 160).print(results_table(results))
    raise typer.Exit(0 if all(result.meets(SCENARIOS[name]) for name, result in results.items()) else 1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog=_EPILOG)(main)
    app(prog_name="scripts/simulate_quota")
