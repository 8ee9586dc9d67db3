# Functions of the scripts in this folder, which set $root and source this file. They create a virtual environment and
# update it when pyproject.toml or constraints.txt changes. It is .venv, or .venv-3.13 if PYTHON names a Python 3.13.

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

# If PYTHON is set, use the environment of that version.
choose_venv() {
    if [ -n "${PYTHON:-}" ]; then
        python=$(find_python)
        venv="$root/.venv-$(minor_version "$python")"
    fi
}

has_pip() {
    "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

create_venv() {
    say "creating ${venv##*/} with $("$1" --version 2>&1)"
    if "$1" -m venv --clear "$venv" >/dev/null 2>&1; then
        return
    fi
    # On Debian, ensurepip is a separate package; without it, the pip of $1 installs a pip into the new environment.
    if ! { "$1" -m venv --clear --without-pip "$venv" && "$1" -m pip --python "$venv/bin/python" install --quiet pip; }; then
        say "$1 cannot create a virtual environment: it needs the venv module and pip"
        return 2
    fi
}

# Print a checksum of what an installation depends on. The path counts, because an editable install names the checkout.
installation_stamp() {
    { cat "$root/pyproject.toml" "$root/constraints.txt"; echo "$root"; } | cksum
}

# Each extra and group has its own stamp, so that scripts/run has nothing to install after scripts/test.
is_installed() {
    for part in "$@"; do
        [ "$(cat "$venv/installed-$part" 2>/dev/null)" = "$stamp" ] || return 1
    done
}

# --no-compile: compiling 300 packages takes longer than installing them. Python compiles what it imports, and has to keep
# it: otherwise each process of the tests compiles all that it imports.
unset PYTHONDONTWRITEBYTECODE
install() {
    "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --no-compile \
        --constraint "$root/constraints.txt" "$@"
}

# prepare "EXTRA..." ["GROUP..."]: create or update the environment. Takes a few milliseconds if there is nothing to do.
# Extras belong to the package, for its users; groups are the [dependency-groups] of pyproject.toml, for work on it.
# shellcheck disable=SC2086 - the variables are lists of words
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
        create_venv "$python"
    fi
    listed=$(echo "$extras" | tr ' ' ',')
    set -- --editable "$root[$listed]"
    say "installing arkbeam[$listed]${groups:+ and the groups $groups} into ${venv##*/}; this takes a minute, once"
    for group in $groups; do
        set -- --group "$group" "$@"
    done
    if [ -n "$groups" ]; then
        install 'pip>=25.1' # an older pip has no option --group
    fi
    (cd "$root" && install "$@")
    for part in $extras $groups; do
        echo "$stamp" >"$venv/installed-$part"
    done
}
