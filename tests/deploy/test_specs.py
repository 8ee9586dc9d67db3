"""The specs of `configs/deploy`: their parts fit together, to this version's command line and to its exit codes."""

import configparser
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import typer
import yaml
from apache_beam.options.pipeline_options import PipelineOptions, WorkerOptions
from arkbeam.app import cli
from arkbeam.app.cli_options import ExitCode
from arkbeam.app.config import parse_config
from arkbeam.beam.submission import Ending, choose_ending
from arkbeam.quota.options import LimitsOptions

from scripts.engines import cluster

DEPLOY = Path(__file__).parents[2] / "configs" / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
NOT_AGAIN = {ExitCode.USAGE, ExitCode.FAILURES, ExitCode.STOPPED, ExitCode.BUDGET, ExitCode.IN_USE}
"""After these, the same command again does not help or, after BUDGET, spends the budget once more."""
DRAIN_S = LimitsOptions().drain_s


@cache
def read_kubernetes() -> dict[str, Any]:
    """Return the resources of flink/arkbeam.yaml by kind."""
    found = list(yaml.safe_load_all((DEPLOY / "flink" / "arkbeam.yaml").read_text("utf-8")))
    resources = {one["kind"]: one for one in found}
    assert len(resources) == len(found)
    return resources


def containers(template: dict[str, Any]) -> dict[str, Any]:
    """Return the containers of a pod template by name."""
    return {one["name"]: one for one in template["spec"]["containers"]}


def launcher() -> dict[str, Any]:
    """Return the container that the CronJob starts."""
    found: dict[str, Any] = containers(read_kubernetes()["CronJob"]["spec"]["jobTemplate"]["spec"]["template"])[
        "launcher"
    ]
    return found


def split_command(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the words of arkbeam, and those of Beam after `--`."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def check_command(words: list[str]) -> PipelineOptions:
    """Check that `arkbeam` has this command and its options, and Beam the options after `--`; return those of Beam."""
    ours, beam = split_command(words)
    command = typer.main.get_command(cli.app)
    with command.make_context("arkbeam", ours[:1], resilient_parsing=True) as context:
        _, found, rest = command.resolve_command(context, ours)  # type: ignore[attr-defined]
        found.make_context("run", [*rest, "--", *beam], parent=context).close()
    options = PipelineOptions(beam)
    assert set(options.get_all_options(retain_unknown_options=True)) == set(options.get_all_options())
    return options


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_files_have_no_addresses_and_no_keys(path: Path) -> None:
    """No file names a registry, an index or a host, or holds a secret."""
    text = path.read_text("utf-8")
    allowed = ("gs://", "tos://", "s3://", "http://maven.apache.org/POM/4.0.0")
    for address in re.findall(r"\w+://[\w.]*[^\s\"'`,)]*", text):
        assert address.startswith(allowed), address
    assert not re.search(r"\b(?:ghcr|gcr|quay|docker|pypi|amazonaws|aliyuncs|volces)\.[a-z]+\b", text)
    assert not re.search(r"\b(?:AKLT|sk-)[A-Za-z0-9]{8}", text)


def test_config_of_the_cluster_is_a_config() -> None:
    """The config in the ConfigMap is valid, and its store and output are on storage that all pods reach."""
    config = parse_config(yaml.safe_load(read_kubernetes()["ConfigMap"]["data"]["config.yaml"]))
    assert all("://" in uri for uri in (config.store.uri, config.output.uri))


def test_launcher_reaches_job_server_and_pools() -> None:
    """The launcher's command is valid; its endpoints and its parallelism are those of the cluster."""
    resources, args = read_kubernetes(), launcher()["args"]
    check_command(args)
    options = dict(word[2:].partition("=")[::2] for word in split_command(args)[1])
    service = resources["Service"]
    ports = {one["port"] for one in service["spec"]["ports"]}
    name, port = options["job_endpoint"].split(":")
    assert (name, int(port) in ports) == (service["metadata"]["name"], True)
    script = (DEPLOY / "flink" / "job_server.sh").read_text("utf-8")
    assert ports == {int(re.search(rf"--{kind}-port=(\d+)", script)[1]) for kind in ("job", "artifact")}  # type: ignore[index]
    cluster_name = resources["FlinkDeployment"]["metadata"]["name"]
    job_server = containers(resources["FlinkDeployment"]["spec"]["jobManager"]["podTemplate"])["job-server"]
    assert job_server["command"][1:] == [f"{cluster_name}-rest:8081", name]
    assert service["spec"]["selector"]["app"] == cluster_name
    configuration = resources["FlinkDeployment"]["spec"]["flinkConfiguration"]
    assert int(options["parallelism"]) <= int(configuration["slotmanager.number-of-slots.max"])
    assert options["environment_config"] == "localhost:50000"
    assert int(options["environment_cache_millis"]) > 0


def test_each_task_manager_has_a_pool_with_the_key() -> None:
    """The pool is a container beside the task manager, on its loopback address; pool and launcher read one secret."""
    task_manager = containers(read_kubernetes()["FlinkDeployment"]["spec"]["taskManager"]["podTemplate"])
    assert list(task_manager) == ["flink-main-container", "workers"]
    assert 'CMD ["--serve", "127.0.0.1:50000"]' in (DEPLOY / "Dockerfile").read_text("utf-8")
    assert task_manager["workers"]["envFrom"] == launcher()["envFrom"] == [{"secretRef": {"name": "arkbeam"}}]


def test_cluster_has_the_settings_of_the_tested_one() -> None:
    """Restarts, network memory and Java's options are those of scripts/flink, which the tests run."""
    configuration = read_kubernetes()["FlinkDeployment"]["spec"]["flinkConfiguration"]
    ports = cluster.Ports(1, 2, 3, 4, 5, 6, slots=2)
    tested = dict(line.split(": ", 1) for line in cluster._configuration(ports, DEPLOY).splitlines())
    same = [
        name for name in tested if re.match(r"taskmanager\.memory\.network|restart-strategy\.type|classloader", name)
    ]
    assert {name: configuration[name] for name in same} == {name: tested[name] for name in same}
    assert len(same) == 4
    assert sorted(configuration["env.java.opts.all"].split()) == sorted(cluster.JAVA_OPENS)


def test_pods_have_time_to_stop() -> None:
    """A pod that is told to end has longer than a run waits for open requests."""
    job = read_kubernetes()["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    task_manager = read_kubernetes()["FlinkDeployment"]["spec"]["taskManager"]["podTemplate"]["spec"]
    assert min(one["terminationGracePeriodSeconds"] for one in (job, task_manager)) >= DRAIN_S + 30


def test_schedulers_try_again_only_what_can_help(airflow: ModuleType) -> None:
    """CronJob, systemd and Airflow do not repeat a run that ended with 2 to 6, and do repeat one that ended with 1."""
    spec = read_kubernetes()["CronJob"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    first = spec["jobTemplate"]["spec"]["podFailurePolicy"]["rules"][0]
    assert (first["action"], first["onExitCodes"]["operator"]) == ("FailJob", "In")
    assert set(first["onExitCodes"]["values"]) == NOT_AGAIN
    service = read_unit("arkbeam.service")["Service"]
    assert set(map(int, service["RestartPreventExitStatus"].split())) == NOT_AGAIN
    assert (service["Restart"], int(service["SuccessExitStatus"])) == ("on-failure", ExitCode.INTERRUPTED)
    assert set(airflow.MEANINGS) == NOT_AGAIN


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the DAG, with stand-ins for the classes of Airflow and Kubernetes."""

    @dataclass
    class Named:
        arguments: dict[str, Any]

    def maker(**arguments: Any) -> Named:
        return Named(arguments)

    class Dag:
        def __init__(self, **arguments: Any) -> None: ...
        def __enter__(self) -> "Dag":
            return self

        def __exit__(self, *_: object) -> None: ...

    class Operator:
        base_container_name = "base"

        def __init__(self, **arguments: Any) -> None:
            self.arguments = arguments
            made.append(self)

        def cleanup(self, pod: Any, remote_pod: Any, *_: Any, **__: Any) -> None:
            if remote_pod.status.container_statuses[0].state.terminated.exit_code:
                raise failure("the pod failed")

    made: list[Any] = []
    failure, final = type("AirflowException", (Exception,), {}), type("AirflowFailException", (Exception,), {})
    models: Any = type("Models", (), {"__getattr__": lambda self, name: maker, "V1Pod": object})()
    stand_ins: dict[str, dict[str, Any]] = {
        "airflow": {},
        "airflow.sdk": {"DAG": Dag},
        "airflow.sdk.exceptions": {"AirflowException": failure, "AirflowFailException": final},
        "airflow.providers.cncf.kubernetes.operators.pod": {"KubernetesPodOperator": Operator},
        "kubernetes": {},
        "kubernetes.client": {"models": models},
    }
    for name, content in stand_ins.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return load(DEPLOY / "airflow" / "arkbeam_dag.py", made=made, final=final, failure=failure)


def load(path: Path, **more: Any) -> ModuleType:
    """Import a file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__dict__.update(more)
    return module


def test_airflow_runs_our_command_in_one_pod(airflow: ModuleType) -> None:
    """The DAG has one task, with a valid command, the secret, and time to stop."""
    (operator,) = airflow.made
    check_command(operator.arguments["arguments"])
    (source,) = operator.arguments["env_from"]
    assert source.arguments["secret_ref"].arguments == {"name": "arkbeam"}
    assert operator.arguments["termination_grace_period"] >= DRAIN_S + 30


@pytest.mark.parametrize("code", [0, 1, 137, *NOT_AGAIN])
def test_airflow_keeps_exit_codes(airflow: ModuleType, code: int) -> None:
    """A failed task names the exit code; Airflow repeats it only after codes that the same command may mend."""
    state = SimpleNamespace(terminated=SimpleNamespace(exit_code=int(code)))
    status = SimpleNamespace(container_statuses=[SimpleNamespace(name="base", state=state)])
    pod = SimpleNamespace(status=status)
    (operator,) = airflow.made
    if code == 0:
        operator.cleanup(pod, pod)
        return
    expected = airflow.final if code in NOT_AGAIN else airflow.failure
    with pytest.raises(Exception, match=f"exit code {int(code)}") as raised:
        operator.cleanup(pod, pod)
    assert raised.type is expected


@pytest.fixture
def launch() -> Callable[..., list[str]]:
    """The function of the Flex Template that makes arkbeam's command line from the launcher's arguments."""
    found: Callable[..., list[str]] = load(DEPLOY / "dataflow" / "launch.py").build_command
    return found


LAUNCHED = (
    "--config=gs://bucket/config.yaml",
    "--set=quota.rpm=600 budget.cny=100",
    "--workers=4",
    "--sdk_container_image=repository/image:1",
    "--runner=DataflowRunner",
    "--job_name=arkbeam-1",
    "--temp_location=gs://bucket/temporary",
)
"""What Google's launcher passes on."""


def test_dataflow_gets_fixed_workers(launch: Callable[..., list[str]]) -> None:
    """The number of workers is fixed, autoscaling is off, the image is the workers', and settings go to arkbeam."""
    ours, beam = split_command(launch(LAUNCHED, "/tmp/config.yaml"))
    assert ours == [
        *("arkbeam", "run", "/tmp/config.yaml", "--set", "quota.rpm=600", "--set", "budget.cny=100", "--no-wait")
    ]
    options = PipelineOptions(beam)
    workers = options.view_as(WorkerOptions)
    assert (workers.num_workers, workers.max_num_workers, workers.autoscaling_algorithm) == (4, 4, "NONE")
    assert workers.sdk_container_image == "repository/image:1"
    assert set(options.get_all_options(retain_unknown_options=True)) == set(options.get_all_options())


def test_dataflow_command_is_a_command(launch: Callable[..., list[str]]) -> None:
    """`arkbeam run` has all options that the template uses."""
    command = launch(LAUNCHED, "/tmp/config.yaml")[1:]
    assert "--no-wait" in command
    check_command(command)
    assert choose_ending(split_command(command)[1], no_wait=True) is Ending.SUBMIT


def test_template_declares_what_the_launcher_reads(launch: Callable[..., list[str]]) -> None:
    """The parameters of metadata.json accept their examples; none is lost, and those that are needed are not optional."""
    declared = {
        one["name"]: one for one in json.loads((DEPLOY / "dataflow" / "metadata.json").read_text())["parameters"]
    }
    given = dict(word[2:].split("=", 1) for word in LAUNCHED)
    assert list(declared) == ["config", "set", "workers", "sdk_container_image"]
    for name, parameter in declared.items():
        assert all(re.search(pattern, given[name]) for pattern in parameter["regexes"])
    assert [name for name, parameter in declared.items() if parameter.get("isOptional")] == ["set"]
    assert "--set" not in launch([word for word in LAUNCHED if not word.startswith("--set=")], "c.yaml")
    for needed in ("--config=", "--workers="):
        with pytest.raises(SystemExit):
            launch([word for word in LAUNCHED if not word.startswith(needed)], "c.yaml")


def read_unit(name: str) -> configparser.ConfigParser:
    """Return a unit of systemd."""
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((DEPLOY / "systemd" / name).read_text("utf-8"))
    return unit


def test_systemd_and_cron_run_our_command() -> None:
    """Service and cron line run the same valid command; the service has time to stop, and signals only the main process."""
    service = read_unit("arkbeam.service")["Service"]
    command = shlex.split(service["ExecStart"])
    check_command(command[1:])
    assert float(service["TimeoutStopSec"]) >= DRAIN_S + 30
    assert service["KillMode"] == "mixed"
    (line,) = [line for line in (DEPLOY / "systemd" / "arkbeam.cron").read_text().splitlines() if line[:1].isdigit()]
    assert f"exec {' '.join(command)} " in line
    assert line.split()[5] == service["User"]
    assert "%" not in line  # cron takes it for a line end


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds no fault in the service and the timer."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    units = [tmp_path / "arkbeam.service", tmp_path / "arkbeam.timer"]
    for unit in units:
        text = (DEPLOY / "systemd" / unit.name).read_text("utf-8")
        unit.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", text))
    done = subprocess.run([tool, "verify", "--man=no", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
