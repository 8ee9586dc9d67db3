"""What a process needs to embed: one engine a run, with client, pacer and open buffer."""

import gc
import os
import secrets
from collections.abc import Callable
from dataclasses import replace

from arkbeam.ark.client import ApiOptions, ArkClient, read_api_key
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import ServiceKind
from arkbeam.engine.core import Engine, EngineOptions
from arkbeam.engine.recorder import Recorder, StoreTarget
from arkbeam.engine.registry import get_engine
from arkbeam.engine.stopping import ReplyCheck
from arkbeam.quota.budget import NO_COST, Budget, BudgetGate, configured_budget
from arkbeam.quota.control import InFlight, Ramp
from arkbeam.quota.draws import Draws
from arkbeam.quota.lease_sharing import LeaseSharing
from arkbeam.quota.options import QuotaOptions
from arkbeam.quota.pacer import Pacer
from arkbeam.quota.sharing import Sharing
from arkbeam.stages.embed.stops import watch_stop
from arkbeam.stages.spec import RunSpec
from arkbeam.store.journal import open_journal
from arkbeam.store.layout import segment_ids
from arkbeam.store.model_record import read_model, write_model

MULTI_REPLY_BYTES = 128 * 1024 * 1024


def open_engine(spec: RunSpec) -> Engine:
    """Return this process's engine of the run, made on first use.

    Raises: ConfigError when the API key is not in the environment.
    """
    return get_engine(spec.run, lambda: _start_engine(spec))


def check_secrets(spec: RunSpec) -> None:
    """Make sure that the environment holds what the run needs of it.

    Raises: ConfigError that names the variable.
    """
    if spec.needs_key:
        read_api_key(spec.api.api_key_env)
    _read_redis_password(spec.quota)


def _relax_collector() -> None:
    """Look for garbage cycles less often: a request makes many objects and no cycle, and a quarter of a text's CPU went there."""
    gc.collect()
    gc.freeze()  # what lives now, most of it Beam's modules, lives to the end
    gc.set_threshold(50_000, 20, 50)


def _start_engine(spec: RunSpec) -> Engine:
    _relax_collector()
    engine = _make_engine(spec)
    if spec.processes > 1:
        watch_stop(spec, engine)
    return engine


def _make_engine(spec: RunSpec) -> Engine:
    api_key = read_api_key(spec.api.api_key_env) if spec.needs_key else "stand-in"
    limits, store = spec.limits, spec.store
    target = StoreTarget(store.uri, spec.run, spec.dimensions, spec.multi)
    process = f"{os.getpid()}-{secrets.token_hex(4)}"
    journal = open_journal(store.uri, spec.run, process)
    reply_check = ReplyCheck(
        spec.service is ServiceKind.STAND_IN, _expected_model(spec), lambda model: _note_model(spec, model)
    )
    return Engine(
        EngineOptions(
            limits, spec.dimensions, store.flush_rows, store.flush_s, spec.multi, spec.started_s, store.timeout_s
        ),
        lambda: ArkClient(_api_options(spec), api_key, connections_max=limits.requests_in_flight),
        lambda now_s: _make_pacer(spec, now_s),
        Recorder(target, segment_ids(), journal),
        reply_check,
        _make_budget_gate(spec, process),
        _choose_sharing(spec),
    )


def _make_budget_gate(spec: RunSpec, process: str) -> BudgetGate | None:
    """Make what keeps the run within its budget: one process has all of it, several draw shares."""
    if not spec.budget.is_set:
        return None
    budget = configured_budget(spec.budget)
    if not spec.shares_budget:
        return BudgetGate(Budget(budget), spec.prices)
    draws = Draws(spec.store.uri, spec.run, process, budget, spec.quota.lanes)
    return BudgetGate(Budget(NO_COST), spec.prices, draws.draw, draws.give_back)


def _make_pacer(spec: RunSpec, now_s: float) -> Pacer:
    in_flight, ramp = InFlight(spec.limits.requests_in_flight), Ramp() if spec.quota.ramp else None
    return Pacer(spec.rpm, spec.tpm, spec.quota.headroom, now_s, in_flight, ramp)


def _choose_sharing(spec: RunSpec) -> Callable[[Pacer], Sharing]:
    """Share the quota through Redis where there is one, else by marks in the store."""
    quota = spec.quota
    if quota.redis_url is None:
        return lambda pacer: LeaseSharing(
            spec.store.uri, spec.quota_account, spec.run, pacer, unshared_s_max=quota.unshared_s_max
        )
    try:
        from arkbeam.quota.redis_sharing import RedisSharing, open_redis  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError("quota.redis_url needs the package redis: pip install 'arkbeam[redis]'") from None
    client = open_redis(quota.redis_url, _read_redis_password(quota))
    return lambda pacer: RedisSharing(client, spec.quota_account, pacer, unshared_s_max=quota.unshared_s_max)


def _read_redis_password(quota: QuotaOptions) -> str | None:
    """Take the password of the Redis from the environment, if there is to be one.

    Raises: ConfigError when the variable that the config names is not set.
    """
    if quota.redis_password_env is None:
        return None
    password = os.environ.get(quota.redis_password_env, "")
    if not password:
        raise ConfigError(f"quota.redis_password_env: the environment variable {quota.redis_password_env} is not set")
    return password


def _api_options(spec: RunSpec) -> ApiOptions:
    """Take larger replies where tokens have vectors too: 4 kB each as zstd, 22 kB as numbers (measured)."""
    return (
        replace(spec.api, reply_bytes_max=max(spec.api.reply_bytes_max, MULTI_REPLY_BYTES)) if spec.multi else spec.api
    )


def _expected_model(spec: RunSpec) -> str | None:
    return read_model(spec.store.uri, spec.service, spec.wire.model).resolved


def _note_model(spec: RunSpec, model: str) -> None:
    """Remember the model that answered: as the right one if it is the first, else as one that was seen."""
    record = read_model(spec.store.uri, spec.service, spec.wire.model)
    changed = replace(record, resolved=model) if record.resolved is None else replace(record, seen=model)
    write_model(spec.store.uri, spec.service, changed)
