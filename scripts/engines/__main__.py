"""The command line of `scripts/flink`."""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import orjson
import typer

from scripts.benchmarks.runs import BenchError
from scripts.children import arkbeam_command
from scripts.engines import cluster, comparison, scaling
from scripts.engines.comparison import ENGINES
from scripts.engines.faults import FAULTS, run_fault
from scripts.engines.install import EngineError
from scripts.engines.trials import COLUMNS, table_line

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.command()
def up(
    task_managers: Annotated[int, typer.Option(min=1, max=9, help="Task managers.")] = 2,
    slots: Annotated[int, typer.Option(min=1, max=16, help="Slots of each task manager.")] = 2,
) -> None:
    """Start a Flink cluster on this machine. The first start downloads Flink and Beam's job server, about 400 MB."""
    cluster.start_cluster(task_managers, slots)
    status()


@app.command()
def add() -> None:
    """Add a task manager to the cluster."""
    cluster.add_task_manager()
    status()


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(context: typer.Context, config: Annotated[str, typer.Argument(help="Config of the run.")]) -> None:
    """Run a config on the cluster. Further arguments go to `arkbeam run`, such as --set quota.rpm=600."""
    command = arkbeam_command("run", config, *context.args, "--", *cluster.beam_arguments())
    os.execv(command[0], command)


@app.command()
def status(json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Print what runs: slots, process ids, jobs. The exit code is 1 if no cluster runs."""
    found = cluster.describe_cluster()
    if json:
        print(orjson.dumps(found).decode())
    elif found["job_manager"] is None:
        print("no cluster runs")
    else:
        print(f"slots: {found['slots']}; job manager: {found['job_manager']['pid']}")
        for task_manager in found["task_managers"]:
            workers = ", ".join(str(worker["pid"]) for worker in task_manager["workers"]) or "none"
            print(f"task manager: {task_manager['pid']}; its workers: {workers}")
        for job in found["jobs"]:
            print(f"job {job['id']}: {job['state']}, {job['vertices']} vertices, {job['name']}")
    if found["job_manager"] is None:
        raise typer.Exit(1)


@app.command()
def faults(
    names: Annotated[list[str] | None, typer.Argument(help=f"Which: {', '.join(FAULTS)}. By default, all.")] = None,
    rows: Annotated[int, typer.Option(min=100, help="Rows of each run.")] = 4_000,
    rpm: Annotated[int, typer.Option(min=60, help="Quota, in requests a minute.")] = 2_400,
    keep: Annotated[Path | None, typer.Option(help="Keep the files of the runs below this folder.")] = None,
) -> None:
    """Run a job for each fault, each on a new cluster, and print one line of a table. A run takes about three minutes."""
    wanted = _check_names(names, FAULTS)
    print(table_line(["fault", *COLUMNS]), flush=True)
    print(table_line(["---"] * (len(COLUMNS) + 1)), flush=True)
    with tempfile.TemporaryDirectory(prefix="arkbeam-faults-") as temporary:
        for name in wanted:
            folder = (keep or Path(temporary)) / name
            try:
                cells = run_fault(FAULTS[name], folder, rows, rpm).cells()
            except BenchError as error:
                cells = [str(error)]
            print(table_line([FAULTS[name].what, *cells]), flush=True)


@app.command()
def compare(
    names: Annotated[list[str] | None, typer.Argument(help=f"Which: {', '.join(ENGINES)}. By default, all.")] = None,
    rows: Annotated[int, typer.Option(min=100, help="Rows of each run.")] = 1_000,
    rpm: Annotated[int, typer.Option(min=60, help="Quota, in requests a minute.")] = 2_400,
) -> None:
    """Run the same job on each engine, twice, and print one line of a table."""
    wanted = _check_names(names, ENGINES)
    print(table_line(["engine", *comparison.COLUMNS]), flush=True)
    print(table_line(["---"] * (len(comparison.COLUMNS) + 1)), flush=True)
    expected = None
    with tempfile.TemporaryDirectory(prefix="arkbeam-engines-") as folder:
        for name in wanted:
            outcome, table, again_s = comparison.run_engine(name, Path(folder, name), rows, rpm)
            print(table_line([ENGINES[name][0], *comparison.cells(outcome, table, expected, again_s)]), flush=True)
            expected = table if name == "in_process" else expected


@app.command()
def scale(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Which: {', '.join(ENGINES)}. By default, in_process flink.")
    ] = None,
    rows: Annotated[int, typer.Option(min=100, help="Rows of the manifest.")] = 500_000,
    new: Annotated[int, typer.Option(min=0, help="Rows of them that the store does not have.")] = 10_000,
    only_plan: Annotated[bool, typer.Option("--plan", help="Plan only; the store is empty.")] = False,
) -> None:
    """Run a large manifest, of which most is owned, on each engine, without a quota, and print one line of a table."""
    wanted = _check_names(names or ["in_process", "flink"], ENGINES)
    columns = scaling.PLAN_COLUMNS if only_plan else scaling.COLUMNS
    print(table_line(["engine", *columns]), flush=True)
    print(table_line(["---"] * (len(columns) + 1)), flush=True)
    with tempfile.TemporaryDirectory(prefix="arkbeam-scale-") as folder:
        first: Path | None = None
        for name in wanted:
            if only_plan:
                cells = scaling.plan_rows(name, Path(folder, name), rows)
            else:
                cells, first = scaling.run_rows(name, Path(folder, name), rows, new, first)
            print(table_line([ENGINES[name][0], *cells]), flush=True)


def _check_names(names: list[str] | None, known: Mapping[str, object]) -> list[str]:
    if unknown := sorted(set(names or ()) - set(known)):
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return names or list(known)


@app.command()
def down() -> None:
    """End the cluster: only the processes that `up` and `add` started."""
    cluster.stop_cluster()


def main() -> None:
    """Run the command line; print errors in one line."""
    try:
        app(prog_name="scripts/flink", standalone_mode=True)
    except EngineError as error:
        print(f"arkbeam: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
