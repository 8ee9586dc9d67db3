#!/usr/bin/env python3
"""Put the API key into the environment, then become another program: `with-key PROGRAM ARGUMENT...`.

Images start with it, so that the key is in no image, config or Beam graph. The key comes from the first of these that is set:

- the variable ARK_API_KEY itself (a Kubernetes secret, an environment file);
- ARKBEAM_KEY_FILE, the path of a file with the key (a mounted secret, a systemd credential);
- ARKBEAM_KEY_SECRET, the name of a version of a secret in Google's Secret Manager, read with the machine's service account:
  projects/P/secrets/S/versions/latest. It needs the extra `dataflow`.

If none is set, the program is started as it is, and arkbeam says what is missing. ARKBEAM_KEY_ENV names another variable
than ARK_API_KEY, as `api.api_key_env` of the config does.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Become the program that the arguments name. Exit with 2 if the key can't be read."""
    if not arguments:
        sys.exit("usage: with-key PROGRAM ARGUMENT...")
    environment = dict(os.environ)
    variable = environment.get("ARKBEAM_KEY_ENV") or "ARK_API_KEY"
    try:
        key = read_key(environment, variable)
    except Exception as error:  # noqa: BLE001 - Google's client has many; the message has no key, since none was read
        sys.stderr.write(f"with-key: the API key can't be read: {type(error).__name__}: {error}\n")
        sys.exit(2)
    if key:
        environment[variable] = key
    try:
        os.execvpe(arguments[0], arguments, environment)
    except OSError as error:
        sys.stderr.write(f"with-key: {arguments[0]} can't be started: {error.strerror}\n")
        sys.exit(127)


def read_key(environment: Mapping[str, str], variable: str) -> str:
    """Return the key, or an empty string if nothing says where it is."""
    if environment.get(variable):
        return environment[variable]
    if file := environment.get("ARKBEAM_KEY_FILE"):
        return Path(file).read_text("utf-8").strip()
    if secret := environment.get("ARKBEAM_KEY_SECRET"):
        return read_secret(secret)
    return ""


def read_secret(name: str) -> str:
    """Return the content of a secret's version in Google's Secret Manager."""
    from google.cloud.secretmanager import SecretManagerServiceClient  # noqa: PLC0415 - only Dataflow's images have it

    reply = SecretManagerServiceClient().access_secret_version(name=name, timeout=60)
    return str(reply.payload.data.decode("utf-8")).strip()


if __name__ == "__main__":
    main(sys.argv[1:])
