"""`python -m arkbeam.emulator`: the server alone. `start_emulator` runs this; people run `arkbeam emulator`."""

import argparse
import json
import socket
import sys

from arkbeam.base.errors import ArkbeamError
from arkbeam.emulator.options import read_options
from arkbeam.emulator.serve import serve


def main() -> int:
    """Parse the arguments and serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m arkbeam.emulator", description="A stand-in for the Ark API.")
    parser.add_argument("--port", type=int, default=0, help="loopback port; 0 takes a free one")
    parser.add_argument("--options", default="{}", help="EmulatorOptions as a JSON object")
    parser.add_argument("--fd", type=int, help="listening socket to use instead of a port")
    parser.add_argument("--parent-pid", type=int, help="end when this process is no longer the parent")
    arguments = parser.parse_args()
    listener = None if arguments.fd is None else socket.socket(fileno=arguments.fd)
    try:
        options = read_options(json.loads(arguments.options))
        serve(options, arguments.port, listener=listener, parent_pid=arguments.parent_pid)
    except ArkbeamError as error:
        sys.stderr.write(f"emulator: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
