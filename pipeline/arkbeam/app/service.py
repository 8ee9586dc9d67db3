"""The service that a command uses: the configured one, or an emulator that is started for the command."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from arkbeam.app.config import Config
from arkbeam.base.errors import ArkbeamError


@contextmanager
def open_service(config: Config) -> Iterator[str]:
    """Yield the base URL of the service. If it is `emulator`, start an emulator for the length of the block."""
    with ExitStack() as stack:
        if not config.starts_emulator:
            yield config.api.base_url
            return
        try:
            from arkbeam.emulator.serve import start_emulator  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ArkbeamError(
                f"api.base_url is emulator, which needs more packages: pip install 'arkbeam[emulator]' ({error})"
            ) from None
        yield stack.enter_context(start_emulator(config.emulator))
