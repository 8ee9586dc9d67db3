"""Runs that nobody waits for: `arkbeam run --no-wait`, `status`, `wait` and `stop`, on Beam's local job server."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.runners.portability.local_job_service import LocalJobServicer
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState
from arkbeam.app.find_run import find_run
from arkbeam.app.job import run_job
from arkbeam.app.run_note import read_run_note, write_run_note
from arkbeam.app.take_over import TakeOver
from arkbeam.app.watching import Dead, find_state, look, wait_for_end
from arkbeam.base.errors import ConfigError, OutputInUse
from arkbeam.beam.submission import Ending, choose_ending
from arkbeam.engine.outcomes import Stop, StopKind
from arkbeam.engine.registry import close_engines
from arkbeam.stages import meter
from arkbeam.stages.embed.process import read_stop
from arkbeam.store.claim import check_claim
from arkbeam.store.living import Watches

ENDPOINT = "--job_endpoint=127.0.0.1:1"
EXTERNAL = "--environment_type=EXTERNAL"
# Beam leaves it to its servers' threads to notice that a job has ended.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class DataflowRunner(PipelineRunner):  # type: ignore[misc]
    """Answers as Beam's runner of this name does, without a service. It fails with `--job_name=fail`."""

    def run_pipeline(self, pipeline: Any, options: PipelineOptions) -> PipelineResult:
        """Return the result of a job that runs for ever, of a template, or of a dry run."""
        google = options.view_as(GoogleCloudOptions)
        if google.job_name == "fail":
            raise OSError("no such project")
        result = PipelineResult(PipelineState.RUNNING)
        if google.template_location or options.get_all_options()["dry_run"]:
            result.wait_until_finish = lambda duration=None: None
        result.job_id = lambda: f"id of {google.job_name}"
        return result


class Dataflow(DataflowRunner):
    """The same, without Beam's checks of projects and buckets, which go by the name of the class."""


DATAFLOW = f"--runner={__name__}.Dataflow"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The arguments of Beam for a job server in this process, which also does the work."""
    monkeypatch.setattr(meter, "NOTE_S", 0.05)
    server = LocalJobServicer()
    port = server.start_grpc_server()
    environment = f"--environment_type={python_urns.EMBEDDED_PYTHON}"
    yield ["--runner=PortableRunner", f"--job_endpoint=localhost:{port}", environment]
    server.stop()
    close_engines()


def submit(place: Any, call: Callable[..., Any], engine: list[str], *further: str) -> dict[str, Any]:
    """Submit a run; return what is printed as JSON."""
    ended = call(*place.arguments("run", {}, "--no-wait", "--json", *further, "--", *engine))
    assert ended.code == 0, ended.err
    return dict(json.loads(ended.out))


def test_a_run_that_nobody_waits_for(place: Any, call: Callable[..., Any], engine: list[str], emulator: Any) -> None:
    """The name is printed, the job goes on and publishes; `wait` and `status` have the result of `run` and its exit code."""
    place.write_rows([*({"id": f"{n}", "text": f"text {n}"} for n in range(30)), "{"])
    printed = submit(place, call, engine)
    assert printed["output"] == str(place.output)
    assert printed["store"] == str(place.store)
    assert printed["state"] == "submitted"
    assert printed["job_id"]
    named = (printed["run"], "--store", str(place.store))
    ended = call("wait", *named, "--json")
    result = json.loads(ended.out)
    assert (ended.code, result["run"], result["published"], result["failed"]) == (3, printed["run"], 30, 1)
    assert result["files"] == place.note["files"]
    assert emulator.stats["paid"] == 30
    for what in (named, (str(place.output),), (str(place.folder / "config.yaml"),)):
        shown = json.loads(call("status", *what, "--json").out)
        assert (shown["run"], shown["state"], shown["result"]["published"]) == (printed["run"], "finished", 30)
        assert call("wait", *what, "--quiet").code == 3
    assert place.run()["requests_sent"] == 0


def test_a_run_is_stopped(make_emulator: Any, make_place: Any, call: Callable[..., Any], engine: list[str]) -> None:
    """`status` shows a living run; `stop` ends it with what is paid for stored, the output unchanged, and 130 for `wait`."""
    emulator = make_emulator(latency_ms=100)
    place = make_place(emulator.url)
    place.settings["limits.requests_in_flight"] = 2
    place.write_texts(500)
    config = str(place.write_config())
    run = submit(place, call, engine)["run"]
    emulator.wait_for("paid", 5)
    shown = watch_until(
        lambda: json.loads(call("status", config, "--json").out), lambda one: one["progress"]["bought"] > 5
    )
    assert (shown["run"], shown["state"], shown["stop"], shown["result"]) == (run, "running", None, None)
    assert (shown["progress"]["phase"], shown["progress"]["requests_expected"]) == ("embedding", 500)
    assert shown["progress"]["requests_per_min"] > 0
    assert shown["progress"]["eta_s"] > 0
    assert {one["kind"] for one in shown["processes"]} == {"note of the progress", "mark"}
    assert all(one["age_s"] < 10 for one in shown["processes"])
    assert "embedding" in call("status", config).out
    ended = call("wait", config, "--timeout-s", "0.1")
    assert (ended.code, "it goes on" in ended.err) == (124, True)
    assert call("stop", config, "--wait", "--quiet").code == 0
    assert call("wait", config).code == 130
    shown = json.loads(call("status", config, "--json").out)
    assert (shown["state"], shown["result"]["stopped"]["code"]) == ("stopped", "stopped")
    assert not (place.output / "_SUCCESS").exists()
    paid = emulator.stats["paid"]
    assert paid == shown["result"]["requests_paid"] < 500
    assert "has ended already" in call("stop", config).err
    assert place.run({"limits.requests_in_flight": 64})["requests_sent"] == 500 - paid


def watch_until(read: Callable[[], Any], holds: Callable[[Any], bool]) -> Any:
    """Return the first value for which a condition holds; fail after a minute."""
    deadline_s = time.monotonic() + 60
    while not holds(value := read()):
        assert time.monotonic() < deadline_s, value
        time.sleep(0.05)
    return value


# The signal may come between the opening of a file and the `with` that closes it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_waiting(
    place: Any, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Ctrl-C and SIGTERM during `wait` exit with 130; the run is not told to stop."""
    spec = begin(place)
    monkeypatch.setattr("arkbeam.app.watching.POLL_S", 0.01)
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    ended = call("wait", spec.run.name, "--store", str(place.store))
    assert (ended.code, f"run {spec.run.name} goes on" in ended.err) == (130, True)
    assert read_stop(spec) is None


def begin(place: Any, **changes: Any) -> Any:
    """Write what a run in many processes writes first; return its spec."""
    place.write_texts(1)
    spec = replace(place.prepare().spec, many_processes=True, **changes)
    write_run_note(spec)
    return spec


def test_a_dead_run(place: Any) -> None:
    """A run that shows no sign of life any more is dead; one that no process has begun to work on is waited for."""
    spec = begin(place)
    run = find_run(spec.run.name, store=str(place.store))
    clock = [0.0]
    mark = place.store / "runs" / spec.run.name / "blocks" / "processes" / "1-a.1"

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if clock[0] > 1_000 and not mark.exists():
            assert find_state(run, look(run.note.spec(run.store_uri), time.time())) == "submitted"  # type: ignore[union-attr]
            mark.parent.mkdir(parents=True)
            mark.write_text("{}")
        if 1_000 < clock[0] < 1_300:
            os.utime(mark, (clock[0], clock[0]))

    with pytest.raises(Dead, match="for 60 s: its processes are dead"):
        wait_for_end(run, spec, silent_s=60, clock=lambda: clock[0], sleep=sleep)
    assert 1_355 < clock[0] < 1_365
    assert find_state(run, look(spec, clock[0] + 200)) == "silent"
    (place.store / "runs" / spec.run.name / "running.json").unlink()
    with pytest.raises(Dead, match="ended without a result"):
        wait_for_end(run, spec)


def test_the_newest_run_is_found(place: Any, call: Callable[..., Any]) -> None:
    """A config, an output with names in it, an id and a name lead to the newest run: published, or with files in the store."""
    place.write_texts(3)
    place.settings["output.uri"] = f"{place.folder}/out/{{run_date}}/{{run_id}}"
    config, settings = str(place.write_config()), ["--set", f"output.uri={place.folder}/out/{{run_date}}/{{run_id}}"]
    first = place.run()
    found = find_run(config, store=None, settings=settings[1:])
    assert (found.name, found.output_uri) == (first["run"], first["config"]["output"]["uri"])
    assert found.result == first | {"files": found.result["files"]}  # type: ignore[index]
    spec = begin(place)
    note = read_run_note(str(place.store), spec.run.name)
    assert note is not None
    assert note.spec(str(place.store)).config == spec.config
    start, _, digits = spec.run.name.split("-")
    for what in (spec.run.name, f"{start}-{digits}", config):
        run = find_run(what, store=None, config=config, settings=settings[1:])
        assert (run.name, run.output_uri, run.note, run.result) == (spec.run.name, spec.run.output_uri, note, None)
    assert find_run(first["run"], store=None, config=config, settings=settings[1:]).result is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["20261126T000000-00000000-00000000"], "--store URI, or --config CONFIG"),
        (["20261126T000000-00000000-00000000", "--store", "{store}"], "has no files in"),
        (["{folder}/nowhere"], "has no run.json"),
        (["{folder}/nowhere", "--store", "{store}"], "has no run of"),
        (["none.yaml", "--config", "none.yaml"], "does not exist"),
    ],
)
def test_no_such_run(place: Any, call: Callable[..., Any], arguments: list[str], words: str) -> None:
    """A run that can't be found exits with 2, and the message says what to give."""
    arguments = [word.format(folder=place.folder, store=place.store) for word in arguments]
    for command in ("status", "wait", "stop"):
        ended = call(command, *arguments)
        assert (ended.code, words in ended.err) == (2, True), ended.err


def test_a_run_of_one_process_is_not_stopped(place: Any, call: Callable[..., Any]) -> None:
    """A run of one process does not look for stops: the message names the process."""
    spec = begin(place)
    write_run_note(replace(spec, many_processes=False))
    ended = call("stop", str(place.output), "--store", str(place.store))
    assert (ended.code, f"SIGTERM to process {os.getpid()}" in ended.err) == (2, True)
    assert read_stop(spec) is None


def test_a_stop_in_the_store(place: Any, call: Callable[..., Any]) -> None:
    """`stop` writes the stop that the run's processes obey."""
    spec = begin(place)
    assert call("stop", spec.run.name, "--store", str(place.store)).code == 0
    stop = read_stop(spec)
    assert isinstance(stop, Stop)
    assert (stop.kind, stop.code) == (StopKind.INTERRUPTED, "stopped")


@pytest.mark.parametrize(
    "beam",
    [
        ["--runner=PortableRunner", ENDPOINT],
        ["--runner=PortableRunner", ENDPOINT, EXTERNAL],
        ["--runner=FlinkRunner", ENDPOINT, "--environment_type=DOCKER"],
        ["--runner=FlinkRunner", "--flink_master=host:8081", "--flink_submit_uber_jar"],
        ["--runner=SparkRunner", ENDPOINT, EXTERNAL],
        ["--runner=SparkRunner", "--spark_rest_url=http://host:6066", "--spark_submit_uber_jar", EXTERNAL],
        ["--runner=DataflowRunner"],
    ],
)
def test_runners_that_go_on(beam: list[str]) -> None:
    """These runners go on without the command; without --no-wait it waits for them."""
    assert choose_ending(beam, no_wait=True) is Ending.SUBMIT
    assert choose_ending(beam, no_wait=False) is Ending.WAIT
    assert choose_ending([*beam, "--no_wait_until_finish"], no_wait=False) is Ending.SUBMIT


@pytest.mark.parametrize(
    ("beam", "words"),
    [
        ([], "in the process of the command"),
        (["--direct_running_mode=multi_processing"], "in the process of the command"),
        (["--runner=DirectRunner"], "in the process of the command"),
        (["--runner=PortableRunner", "--job_endpoint=embed"], "job server is in the process"),
        (["--runner=PortableRunner", EXTERNAL], "starts a job server that ends"),
        (["--runner=PrismRunner", EXTERNAL], "starts a job server that ends"),
        (["--runner=FlinkRunner", "--flink_submit_uber_jar"], "starts a job server that ends"),
        (["--runner=PortableRunner", ENDPOINT, "--environment_type=LOOPBACK"], "workers are in the process"),
        (["--runner=FlinkRunner", ENDPOINT], "workers are in the process"),
        (["--runner=NoRunner", ENDPOINT], "Unexpected pipeline runner"),
    ],
)
def test_runners_that_do_not(place: Any, call: Callable[..., Any], beam: list[str], words: str) -> None:
    """With a runner that ends with the command, --no-wait exits with 2 and names those that do not; nothing is written."""
    place.write_texts(1)
    ended = call(*place.arguments("run", {}, "--no-wait", "--", *beam))
    assert (ended.code, words in ended.err) == (2, True), ended.err
    assert "NoRunner" in str(beam) or "DataflowRunner" in ended.err
    assert not place.store.exists()


@pytest.mark.parametrize(
    ("beam", "state"),
    [([], "submitted"), (["--template_location=gs://b/t"], "written"), (["--dry_run=True"], "dropped")],
)
def test_what_a_job_finds(
    place: Any, call: Callable[..., Any], emulator: Any, beam: list[str], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that runs, now or later, finds its files and its claim; a dry run leaves nothing. None is waited for.

    A job that was handed to an engine, which may have no place for it yet, counts as alive. One that is written does not.
    """
    monkeypatch.setattr("arkbeam.app.holding.Watches", partial(Watches, lease_s=0.2))
    monkeypatch.setattr("arkbeam.app.job.TakeOver", partial(TakeOver, lease_s=0.2))
    place.write_texts(3)
    printed = submit(place, call, [DATAFLOW, *beam])
    run = printed["run"]
    job = f"id of arkbeam-{run.lower()}"
    assert (printed["state"], printed["job_id"]) == (state, job if state == "submitted" else None)
    assert emulator.stats["received"] == 0
    if state == "dropped":
        assert place.leftovers == []
        return
    names = {path.name for path in (place.store / "runs" / run).iterdir()}
    assert names - {".lock"} == {"running.json", "shards.json"}
    check_claim(str(place.output), run)
    if state == "submitted":
        with pytest.raises(OutputInUse, match="--take-over"):
            place.run()
        check_claim(str(place.output), run)
    assert run_job(place.prepare(), take_over=True, say=lambda _: None)["published"] == 3
    assert place.leftovers == []


def test_a_job_that_is_not_accepted(place: Any, call: Callable[..., Any]) -> None:
    """If the engine does not take the job, the command exits with 1, and the run leaves nothing."""
    place.write_texts(3)
    ended = call(*place.arguments("run", {}, "--no-wait", "--", DATAFLOW, "--job_name=fail"))
    assert (ended.code, ended.out, "no such project" in ended.err) == (1, "", True)
    assert place.leftovers == []


def test_an_emulator_of_the_command(place: Any, call: Callable[..., Any]) -> None:
    """An emulator that the command starts would end with it: an error."""
    place.write_texts(1)
    ended = call(
        *place.arguments("run", {"api.base_url": "emulator"}, "--no-wait", "--", "--runner=PortableRunner", ENDPOINT)
    )
    assert (ended.code, "arkbeam emulator" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("beam", "expected"),
    [
        (["--runner=DataflowRunner", "--template_location=gs://b/t"], Ending.WRITE),
        (["--runner=DataflowRunner", "--dry_run=True"], Ending.DRY_RUN),
        (["--runner=FlinkRunner", "--output_executable_path=job.jar"], Ending.WRITE),
        (["--runner=PortableRunner", ENDPOINT, "--output_executable_path=job.jar"], Ending.WRITE),
        (["--template_location=gs://b/t"], None),
        (["--runner=FlinkRunner", ENDPOINT, "--dry_run=True"], None),
        (["--output_executable_path=job.jar"], None),
        (["--runner=PrismRunner", "--output_executable_path=job.jar"], None),
        (["--runner=FlinkRunner", "--flink_master=h:1", "--flink_submit_uber_jar", "--output_executable_path=j"], None),
    ],
)
def test_jobs_that_are_written(beam: list[str], expected: Ending | None) -> None:
    """Options that write a job are accepted from runners that know them; others would run the job, which is an error."""
    if expected is None:
        with pytest.raises(ConfigError, match="here the job would run"):
            choose_ending(beam, no_wait=False)
    else:
        assert choose_ending(beam, no_wait=False) is choose_ending(beam, no_wait=True) is expected
