"""The command line of `scripts/flink`."""

import os
import sys
from typing import Annotated

import orjson
import typer

from scripts.children import arkbeam_command
from scripts.engines import cluster
from scripts.engines.install import EngineError

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
