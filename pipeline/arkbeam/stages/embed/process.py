"""Set up a process for Embed: its engine, the note of its counts, and the note by which processes stop each other."""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial

import orjson

from arkbeam.ark.client import ApiOptions, ArkClient, read_api_key
from arkbeam.base.collector import relax_collector
from arkbeam.base.errors import ConfigError, StoreError
from arkbeam.base.files import read_if_exists, write_bytes
from arkbeam.base.records import ServiceKind
from arkbeam.engine.attempts import Attempts, blocks_folder
from arkbeam.engine.core import Engine
from arkbeam.engine.outcomes import Stop, StopKind
from arkbeam.engine.recorder import Recorder, StoreTarget
from arkbeam.engine.registry import close_engines, find_engine, get_engine
from arkbeam.engine.sender import EngineOptions, Sender
from arkbeam.engine.stopping import ReplyCheck
from arkbeam.quota.budget import NO_COST, Budget, BudgetGate, configured_budget
from arkbeam.quota.control import InFlight, Ramp
from arkbeam.quota.draws import Draws
from arkbeam.quota.lease_sharing import LeaseSharing
from arkbeam.quota.options import QuotaOptions
from arkbeam.quota.pacer import Pacer
from arkbeam.quota.sharing import Sharing
from arkbeam.stages.embed.counts import note_counts
from arkbeam.stages.spec import RunSpec
from arkbeam.store.journal import open_journal
from arkbeam.store.layout import segment_ids
from arkbeam.store.living import is_running
from arkbeam.store.model_record import read_model, write_model
from arkbeam.store.run_files import note_uri

MULTI_REPLY_BYTES = 128 * 1024 * 1024  # largest reply with per-token vectors
PROCESSES_GUESS = 16  # how many processes may draw on a budget at once; the runner decides how many there are


def open_engine(spec: RunSpec) -> Engine:
    """Return this process's engine of the run; make it on first use.

    Raise ConfigError if the API key is not in the environment.
    """
    if spec.many_processes and find_engine(spec.run.name) is None:
        close_engines(but=spec.run.name)
    return get_engine(spec.run.name, lambda: _start_engine(spec))


def check_secrets(spec: RunSpec) -> None:
    """Check that the environment has the secrets that the run needs.

    Raise ConfigError that names the missing variable.
    """
    if _needs_key(spec):
        read_api_key(spec.api.api_key_env)
    _read_redis_password(spec.quota)


def write_stop(spec: RunSpec, stop: Stop) -> None:
    """Write the note in the run's folder that stops all processes of the run. Raise StoreError."""
    write_stop_of(spec.run_files_uri, spec.run.name, stop)


def write_stop_of(store_uri: str, run: str, stop: Stop) -> None:
    """Write the note that stops all processes of another run, which may have several. Raise StoreError."""
    write_bytes(note_uri(store_uri, run, "stop"), orjson.dumps(asdict(stop)))


def read_stop(spec: RunSpec) -> Stop | None:
    """Return why the run has to stop; None if it has not. Raise StoreError."""
    data = read_if_exists(note_uri(spec.run_files_uri, spec.run.name, "stop"))
    if data is None:
        return None
    note = orjson.loads(data)
    return Stop(StopKind(note["kind"]), note["code"], note["message"])


def keep_in_touch(spec: RunSpec) -> None:
    """Stop this process's engine if another process has stopped the run, and renew the note of its counts. Raise StoreError."""
    engine = find_engine(spec.run.name)
    if engine is None or not engine.is_running:
        return
    stop = read_stop(spec) if engine.status().stop is None else None
    if stop is not None:
        engine.stop(stop)
    with suppress(StoreError):  # the next note has all counts
        note_counts(spec, engine)


def _start_engine(spec: RunSpec) -> Engine:
    relax_collector()
    api_key = read_api_key(spec.api.api_key_env) if _needs_key(spec) else "stand-in"
    limits, store, model = spec.limits, spec.store, spec.model
    dimensions, multi = model.dimensions_stored, model.asks_multi
    target = StoreTarget(store.uri, spec.run.name, dimensions, multi)
    process = f"{os.getpid()}-{secrets.token_hex(4)}"
    journal = open_journal(store.uri, spec.run.name, process)
    reply_check = ReplyCheck(
        spec.run.service is ServiceKind.STAND_IN, _expected_model(spec), lambda model: _note_model(spec, model)
    )
    sender = Sender(
        EngineOptions(limits, dimensions, store.flush_rows, store.flush_s, multi, spec.run.started_s, store.timeout_s),
        lambda: ArkClient(_api_options(spec), api_key, connections_max=limits.requests_in_flight),
        lambda now_s: _make_pacer(spec, now_s),
        Recorder(target, segment_ids(), journal),
        reply_check,
        _make_budget_gate(spec, process),
        _choose_sharing(spec),
        _start_attempts(spec, process),
    )
    return Engine(sender)


def _start_attempts(spec: RunSpec, process: str) -> Attempts:
    """Return this process's attempts at blocks; in a run with several processes they are visible to the others."""
    if not spec.many_processes:
        return Attempts()
    store_uri, run = spec.store.uri, spec.run.name
    attempts = Attempts(
        process, blocks_folder(store_uri, run), partial(keep_in_touch, spec), partial(is_running, store_uri, run)
    )
    attempts.start()
    return attempts


def _make_budget_gate(spec: RunSpec, process: str) -> BudgetGate | None:
    """Return None without a budget. A single process has the whole budget; several processes draw shares of it."""
    if not spec.budget.is_set:
        return None
    budget = configured_budget(spec.budget)
    if not spec.many_processes:
        return BudgetGate(Budget(budget), spec.prices)
    draws = Draws(spec.store.uri, spec.run.name, process, budget, PROCESSES_GUESS)
    return BudgetGate(Budget(NO_COST), spec.prices, draws.draw, draws.give_back)


def _make_pacer(spec: RunSpec, now_s: float) -> Pacer:
    in_flight, ramp = InFlight(spec.limits.requests_in_flight), Ramp() if spec.quota.ramp else None
    return Pacer(*spec.rate_limits, spec.quota.headroom, now_s, in_flight, ramp)


def _choose_sharing(spec: RunSpec) -> Callable[[Pacer], Sharing]:
    """Return how processes share the quota: through Redis if it is configured, otherwise through marks in the store."""
    quota = spec.quota
    if quota.redis_url is None:
        return lambda pacer: LeaseSharing(
            spec.store.uri, spec.quota_account, spec.run.name, pacer, unshared_s_max=quota.unshared_s_max
        )
    try:
        from arkbeam.quota.redis_sharing import RedisSharing, open_redis  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError("quota.redis_url needs the package redis: pip install 'arkbeam[redis]'") from None
    client = open_redis(quota.redis_url, _read_redis_password(quota))
    return lambda pacer: RedisSharing(client, spec.quota_account, pacer, unshared_s_max=quota.unshared_s_max)


def _read_redis_password(quota: QuotaOptions) -> str | None:
    """Read the password of Redis from the environment; None if the config names no variable for it.

    Raise ConfigError if the variable that the config names is not set.
    """
    if quota.redis_password_env is None:
        return None
    password = os.environ.get(quota.redis_password_env, "")
    if not password:
        raise ConfigError(f"quota.redis_password_env: the environment variable {quota.redis_password_env} is not set")
    return password


def _needs_key(spec: RunSpec) -> bool:
    return spec.run.service is ServiceKind.ARK


def _api_options(spec: RunSpec) -> ApiOptions:
    """Allow larger replies if they hold per-token vectors: 4 kB a token as zstd, 22 kB as numbers (measured)."""
    if not spec.model.asks_multi:
        return spec.api
    return replace(spec.api, reply_bytes_max=max(spec.api.reply_bytes_max, MULTI_REPLY_BYTES))


def _expected_model(spec: RunSpec) -> str | None:
    return read_model(spec.store.uri, spec.run.service, spec.model.name).resolved


def _note_model(spec: RunSpec, model: str) -> None:
    """Record the model that a reply names: as `resolved` if it is the first, otherwise as `seen`."""
    record = read_model(spec.store.uri, spec.run.service, spec.model.name)
    changed = replace(record, resolved=model) if record.resolved is None else replace(record, seen=model)
    write_model(spec.store.uri, spec.run.service, changed)
