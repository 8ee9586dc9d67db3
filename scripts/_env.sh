# Read by scripts/run, scripts/test and scripts/bench, which set $root: keeps a virtual environment in step with pyproject.toml
# and constraints.txt. It is .venv, or .venv-3.13 where PYTHON names a Python 3.13, so that the first is kept.

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

# Takes the environment of the Python that PYTHON names, if it names one.
choose_venv() {
    if [ -n "${PYTHON:-}" ]; then
        python=$(find_python)
        venv="$root/.venv-$(minor_version "$python")"
    fi
}

has_pip() {
    "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

make_venv() {
    say "making ${venv##*/} with $("$1" --version 2>&1)"
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

# One stamp for each extra and group: after scripts/test, scripts/run has nothing to do.
is_installed() {
    for part in "$@"; do
        [ "$(cat "$venv/installed-$part" 2>/dev/null)" = "$stamp" ] || return 1
    done
}

# Compiling all of 300 packages takes longer than the rest; Python compiles what it imports.
install() {
    "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --no-compile \
        --constraint "$root/constraints.txt" "$@"
}

# prepare "EXTRA..." ["GROUP..."]: makes or renews the environment; costs a few milliseconds when there is nothing to do.
# Extras are parts of the package, for its users; groups are [dependency-groups] of pyproject.toml, for work on it.
# shellcheck disable=SC2086 - lists of words
prepare() {
    extras=$1
    groups=${2:-}
    choose_venv
    stamp=$(installation_stamp)
    if is_usable "$venv/bin/python" && is_installed $extras $groups; then
        return
    fi
    if ! { is_usable "$venv/bin/python" && has_pip; }; then
        python=$(find_python)
        make_venv "$python"
    fi
    set -- --editable "$root[$(echo "$extras" | tr ' ' ',')]"
    say "installing arkbeam[$(echo "$extras" | tr ' ' ',')]${groups:+ and the groups $groups} into ${venv##*/}; this takes a minute, once"
    for group in $groups; do
        set -- --group "$group" "$@"
    done
    if [ -n "$groups" ]; then
        install 'pip>=25.1' # the pip that comes with a Python may be older, and then knows no --group
    fi
    (cd "$root" && install "$@")
    for part in $extras $groups; do
        echo "$stamp" >"$venv/installed-$part"
    done
}
