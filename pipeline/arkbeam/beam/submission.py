"""Jobs that this process does not wait for: which runners take them, and Beam's options that write a job and do not run it."""

from collections.abc import Sequence
from enum import Enum, auto

from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    SparkRunnerOptions,
    StandardOptions,
    TestOptions,
)
from apache_beam.portability import python_urns
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import PipelineRunner, create_runner

from arkbeam.base.errors import ConfigError

ABLE = (
    "PortableRunner, FlinkRunner or SparkRunner with --job_endpoint=HOST:PORT (or with --flink_submit_uber_jar or"
    " --spark_submit_uber_jar), and DataflowRunner"
)
_WRITTEN_BY = {
    "--template_location": "DataflowRunner",
    "--dry_run": "DataflowRunner",
    "--output_executable_path": "a job server in Java (FlinkRunner, SparkRunner, PortableRunner)",
}
"""Options that write a job and do not run it, and who knows them. Other runners ignore them, and would run the job."""
_UBER_JARS = {
    "FlinkRunner": (FlinkRunnerOptions, "flink_submit_uber_jar"),
    "SparkRunner": (SparkRunnerOptions, "spark_submit_uber_jar"),
}


class Ending(Enum):
    """What becomes of a job that was built."""

    WAIT = auto()
    """It runs, and this process waits for its end."""
    SUBMIT = auto()
    """It runs on an engine, and this process does not wait."""
    WRITE = auto()
    """It is written to a file; somebody may run it later."""
    DRY_RUN = auto()
    """It is dropped."""


def choose_ending(arguments: Sequence[str], *, no_wait: bool) -> Ending:
    """Return what becomes of a job with these arguments of Beam.

    Raise ConfigError if `no_wait` is set and the runner, or a part that it needs, would end with this process; and if the
    runner ignores an option that is to prevent the job from running.
    """
    options = PipelineOptions(list(arguments))
    named = any(argument.startswith("--runner") for argument in arguments)
    runner = find_runner(options) if named else None
    written = _find_written(options)
    if written is not None:
        _check_written(written, runner, options)
        return Ending.DRY_RUN if written == "--dry_run" else Ending.WRITE
    if not no_wait and not options.view_as(StandardOptions).no_wait_until_finish:
        return Ending.WAIT
    reason = _why_bound(runner, options, arguments)
    if reason is not None:
        raise ConfigError(f"--no-wait: {reason}; the runners that go on without this command are {ABLE}")
    return Ending.SUBMIT


def find_runner(options: PipelineOptions) -> PipelineRunner:
    """Return the runner that the options name. Raise ConfigError if there is none, or if it is not installed."""
    try:
        return create_runner(options.view_as(StandardOptions).runner)
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigError(f"--runner: {error}") from None


def _find_written(options: PipelineOptions) -> str | None:
    given = {
        "--dry_run": options.view_as(TestOptions).dry_run,
        "--template_location": options.view_as(GoogleCloudOptions).template_location,
        "--output_executable_path": options.view_as(PortableOptions).output_executable_path,
    }
    return next((name for name, value in given.items() if value), None)


def _check_written(name: str, runner: PipelineRunner | None, options: PipelineOptions) -> None:
    if name == "--output_executable_path":
        known = isinstance(runner, PortableRunner) and "PrismRunner" not in _names(runner)
        known = known and _uber_jar(runner, options) is False
        known = known and options.view_as(PortableOptions).job_endpoint != "embed"
    else:
        known = "DataflowRunner" in _names(runner)
    if not known:
        raise ConfigError(
            f"{name}: only {_WRITTEN_BY[name]} knows this option; here the job would run. To see what a run would send,"
            " use arkbeam plan"
        )


def _why_bound(runner: PipelineRunner | None, options: PipelineOptions, arguments: Sequence[str]) -> str | None:
    """Return why a job would end with this process; None if it goes on."""
    if "DataflowRunner" in _names(runner):
        return None
    if not isinstance(runner, PortableRunner):
        return "this runner works in the process of the command"
    endpoint = options.view_as(PortableOptions).job_endpoint
    if endpoint == "embed":
        return "with --job_endpoint=embed, the job server is in the process of the command"
    if not endpoint and not _uber_jar(runner, options):
        return "without --job_endpoint, the runner starts a job server that ends with the command"
    if _is_loopback(runner, PipelineOptions(list(arguments))):
        return (
            "with --environment_type=LOOPBACK, which is the default of some runners, the workers are in the process of the"
            " command: set --environment_type"
        )
    return None


def _is_loopback(runner: PortableRunner, options: PipelineOptions) -> bool:
    """True if the workers would be in this process. The options are changed: some runners put their default into them."""
    portable = options.view_as(PortableOptions)
    if not portable.environment_type and type(runner).default_environment is not PipelineRunner.default_environment:
        runner.default_environment(options)
    return portable.environment_type in ("LOOPBACK", python_urns.EMBEDDED_PYTHON_LOOPBACK)


def _uber_jar(runner: PipelineRunner | None, options: PipelineOptions) -> bool:
    """True if the command itself sends the job to the cluster."""
    for name, (section, option) in _UBER_JARS.items():
        if name in _names(runner) and getattr(options.view_as(section), option):
            return name != "FlinkRunner" or not options.view_as(FlinkRunnerOptions).flink_master.startswith("[")
    return False


def _names(runner: PipelineRunner | None) -> set[str]:
    """Return the names of a runner's class and of its base classes: importing Dataflow's needs further packages."""
    return {kind.__name__ for kind in type(runner).__mro__}
