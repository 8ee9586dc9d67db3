"""Airflow: runs `arkbeam run` in a pod every night, and treats its exit codes as they are meant.

It needs Airflow 2.10 or newer with the provider cncf.kubernetes 9 or newer, the image `arkbeam-launcher` (../Dockerfile), a
secret `arkbeam` with ARK_API_KEY and the credentials of the object store, and a ConfigMap `arkbeam` with `config.yaml`.
"""

from datetime import datetime, timedelta
from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from kubernetes.client import models as k8s

try:
    from airflow.sdk import DAG
    from airflow.sdk.exceptions import AirflowException, AirflowFailException
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.exceptions import AirflowException, AirflowFailException

NAMESPACE = "default"
IMAGE = "arkbeam-launcher"
CONFIG = "/etc/arkbeam/config.yaml"
BEAM_OPTIONS: list[str] = []
"""Empty: the run is in the pod itself. On a Flink cluster: the options of the CronJob in ../flink/arkbeam.yaml."""

MEANINGS = {
    2: "the command line, the config or a manifest is invalid",
    3: "more rows failed than limits.failures_allowed; the output is published",
    4: "the service refuses to go on, or its first answers show that the config is wrong",
    5: "the budget is used up; the next run continues",
    6: "another run is writing this output",
}
"""Exit codes after which the same command is not tried again. After 5, a retry would spend the budget once more."""


class ArkbeamOperator(KubernetesPodOperator):
    """A pod whose exit codes above fail the task at once. Other codes (1, 137, 143, …) are retried."""

    def cleanup(self, pod: k8s.V1Pod, remote_pod: k8s.V1Pod, *arguments: Any, **named: Any) -> None:
        """Delete the pod as the provider does; raise what the exit code of the container asks for."""
        code = find_exit_code(remote_pod, self.base_container_name)
        try:
            super().cleanup(pod, remote_pod, *arguments, **named)
        except AirflowException as error:
            if code in MEANINGS:
                raise AirflowFailException(f"arkbeam ended with exit code {code}: {MEANINGS[code]}") from error
            raise AirflowException(f"arkbeam ended with exit code {code}") from error


def find_exit_code(pod: k8s.V1Pod | None, container: str) -> int | None:
    """Return the exit code of a container; None if it has not ended or is not known."""
    statuses = (pod.status.container_statuses if pod and pod.status else None) or []
    states = [status.state for status in statuses if status.name == container]
    return next((state.terminated.exit_code for state in states if state and state.terminated), None)


with DAG(
    dag_id="arkbeam",
    schedule="30 1 * * *",
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 - Airflow puts its own time zone
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
):
    ArkbeamOperator(
        task_id="run",
        name="arkbeam",
        namespace=NAMESPACE,
        image=IMAGE,
        arguments=["run", CONFIG, *(["--", *BEAM_OPTIONS] if BEAM_OPTIONS else [])],
        env_from=[k8s.V1EnvFromSource(secret_ref=k8s.V1SecretEnvSource(name="arkbeam"))],
        volumes=[k8s.V1Volume(name="config", config_map=k8s.V1ConfigMapVolumeSource(name="arkbeam"))],
        volume_mounts=[k8s.V1VolumeMount(name="config", mount_path="/etc/arkbeam", read_only=True)],
        container_resources=k8s.V1ResourceRequirements(
            requests={"memory": "4Gi", "cpu": "1"}, limits={"memory": "4Gi"}
        ),
        security_context=k8s.V1PodSecurityContext(run_as_non_root=True, run_as_user=10001),
        termination_grace_period=120,  # limits.drain_s and time to write what was paid for
        reattach_on_restart=True,  # a scheduler that starts again finds the pod, and does not start a second one
        on_finish_action="delete_pod",
        log_pod_spec_on_failure=False,
        get_logs=True,
    )
