"""`python -m arkbeam.emulator`: run only the server. `start_emulator` uses this; people use `arkbeam emulator`."""

import argparse
import json
import socket
import sys

from arkbeam.base.errors import ArkbeamError
from arkbeam.emulator.options import read_options
from arkbeam.emulator.serve import serve


def main() -> int:
    """Parse the arguments and serve until interrupted. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m arkbeam.emulator", description="A local stand-in for the Ark API.")
    parser.add_argument("--port", type=int, default=0, help="port on the loopback interface; 0 selects a free port")
    parser.add_argument("--options", default="{}", help="EmulatorOptions as a JSON object")
    parser.add_argument("--fd", type=int, help="file descriptor of a listening socket, used instead of --port")
    parser.add_argument("--parent-pid", type=int, help="exit when the process with this id is no longer the parent")
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
