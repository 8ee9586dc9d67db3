"""The service that a command uses: the configured one, or an emulator that is started for the command."""

from collections.abc import Iterator
from contextlib import contextmanager

from arkbeam.app.config import Config
from arkbeam.ark.client import endpoint_url, is_stand_in
from arkbeam.base.errors import ArkbeamError
from arkbeam.base.records import ServiceKind
from arkbeam.emulator.options import EmulatorOptions

_PROBE_S = 2.0  # time limit for asking a local server if it is an emulator


def find_service(config: Config, base_url: str) -> ServiceKind:
    """Return which kind of service makes the vectors. Only a server on a loopback address is asked if it is a stand-in."""
    if config.starts_emulator:
        return ServiceKind.STAND_IN
    endpoint_url(base_url)
    return ServiceKind.STAND_IN if is_stand_in(base_url, _PROBE_S) else ServiceKind.ARK


@contextmanager
def open_service(config: Config) -> Iterator[str]:
    """Yield the base URL of the service. If it is `emulator`, start an emulator for the length of the block."""
    if not config.starts_emulator:
        yield config.api.base_url
        return
    with _emulator("api.base_url is emulator", config.emulator) as url:
        yield url


@contextmanager
def open_service_of_output(config: Config, kind: ServiceKind) -> Iterator[str]:
    """Yield the base URL of the service that made an output.

    If that is an emulator that does not run, start one, without quotas and faults.
    """
    url = config.api.base_url
    if kind is ServiceKind.ARK or (not config.starts_emulator and is_stand_in(url, _PROBE_S)):
        yield url
        return
    with _emulator("the output was made by the emulator", EmulatorOptions(endpoints=config.emulator.endpoints)) as url:
        yield url


@contextmanager
def _emulator(reason: str, options: EmulatorOptions) -> Iterator[str]:
    try:
        from arkbeam.emulator.serve import start_emulator  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ArkbeamError(f"{reason}, which needs more packages: pip install 'arkbeam[emulator]' ({error})") from None
    with start_emulator(options) as url:
        yield url
