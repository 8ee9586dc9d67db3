# Read by scripts/run and scripts/test, which set $root: keeps .venv in step with pyproject.toml and constraints.txt.

venv="$root/.venv"

say() {
    printf 'arkbeam: %s\n' "$*" >&2
}

is_usable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

minor_version() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        if ! is_usable "$PYTHON"; then
            say "PYTHON=$PYTHON is not a Python 3.11 or newer"
            return 2
        fi
        echo "$PYTHON"
        return
    fi
    for name in python3.13 python3.12 python3.11 python3; do
        if is_usable "$name"; then
            echo "$name"
            return
        fi
    done
    say "no Python 3.11 or newer on PATH; install one, or name it: PYTHON=/path/to/python $0"
    return 2
}

# True when .venv works and is of the version that PYTHON asks for, if it asks.
venv_is_good() {
    is_usable "$venv/bin/python" || return 1
    [ -z "${PYTHON:-}" ] || [ "$(minor_version "$PYTHON" 2>&1)" = "$(minor_version "$venv/bin/python")" ]
}

has_pip() {
    "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

make_venv() {
    say "making .venv with $("$1" --version 2>&1)"
    if "$1" -m venv --clear "$venv" >/dev/null 2>&1; then
        return
    fi
    # Debian packs ensurepip apart from Python; its pip can still fill a venv that has none.
    if ! { "$1" -m venv --clear --without-pip "$venv" && "$1" -m pip --python "$venv/bin/python" install --quiet pip; }; then
        say "$1 can make no virtual environment: it needs the venv module and pip"
        return 2
    fi
}

# What an installation depends on. The path is in it since an editable install names the checkout.
installation_stamp() {
    { cat "$root/pyproject.toml" "$root/constraints.txt"; echo "$root"; } | cksum
}

# One stamp an extra: after scripts/test, scripts/run has nothing to do.
is_installed() {
    for extra in "$@"; do
        [ "$(cat "$venv/installed-$extra" 2>/dev/null)" = "$stamp" ] || return 1
    done
}

# prepare EXTRA...: makes or renews .venv; costs a few milliseconds when there is nothing to do.
prepare() {
    stamp=$(installation_stamp)
    if venv_is_good && is_installed "$@"; then
        return
    fi
    if ! { venv_is_good && has_pip; }; then
        python=$(find_python)
        make_venv "$python"
    fi
    extras=$(echo "$*" | tr ' ' ',')
    say "installing arkbeam[$extras] into .venv; this takes a minute, once"
    "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check \
        --constraint "$root/constraints.txt" --editable "$root[$extras]"
    for extra in "$@"; do
        echo "$stamp" >"$venv/installed-$extra"
    done
}
