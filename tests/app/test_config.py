"""The config: its keys, and an error message for every mistake."""

import copy
import re
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from arkbeam.app.config import (
    CONFIG_BYTES_MAX,
    Config,
    describe_config,
    list_keys,
    load_config,
    parse_config,
    parse_emulator,
)
from arkbeam.ark.models import check_options
from arkbeam.base.errors import ConfigError
from arkbeam.quota.options import LimitsOptions
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
SMALLEST: dict[str, Any] = {
    "manifest": {"uris": "rows.jsonl"},
    "model": {"name": "doubao-embedding-vision-251215"},
    "store": {"uri": "store"},
    "output": {"uri": "out"},
}


def _look_up(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _parse(key: str = "", value: Any = None) -> Config:
    """Parse the smallest config with one more key."""
    raw = copy.deepcopy(SMALLEST)
    *sections, last = key.split(".")
    inner = raw
    for section in sections:
        inner = inner.setdefault(section, {})
    if key:
        inner[last] = value
    return parse_config(raw)


@pytest.mark.parametrize("key", ["manifest.uris", "store.uri", "output.uri"])
@pytest.mark.parametrize(
    "uri", ["s3://KEY:SECRET@bucket/a.jsonl", "S3A://KEY:SEC/RET@bucket/a.jsonl", "gs://SECRET@b/a"]
)
def test_credentials_in_the_uri_of_an_object_are_refused(key: str, uri: str) -> None:
    """The message says what to do and shows neither user nor password."""
    with pytest.raises(ConfigError, match="remove them") as caught:
        _parse(key, uri)
    assert not any(part in str(caught.value) for part in ("KEY", "SEC", "RET"))


def test_schemes_are_written_in_lower_case() -> None:
    """`S3://` means `s3://` for manifests, store and output; a path keeps its letters."""
    config = parse_config(
        {**SMALLEST, "manifest": {"uris": ["S3://B/Rows.jsonl", "A/x://y"]}, "store": {"uri": "GS://B/S"}}
    )
    assert config.manifest.uris == ("s3://B/Rows.jsonl", "A/x://y")
    assert config.store.uri == "gs://B/S"


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("manifest.uris", ["a.jsonl", "b/*.csv"], ("a.jsonl", "b/*.csv")),
        ("manifest.uris", "a.jsonl", ("a.jsonl",)),
        ("manifest.columns.id", "sku", "sku"),
        ("manifest.columns.text", ["title", "body"], ("title", "body")),
        ("manifest.columns.image", "photo", ("photo",)),
        ("manifest.columns.video", "clip", ("clip",)),
        ("manifest.keep", ["price", "tags"], ("price", "tags")),
        ("model.name", "doubao-embedding-vision-250615", "doubao-embedding-vision-250615"),
        ("model.dimensions", 1024, 1024),
        ("model.sparse", True, True),
        ("model.instructions", "Instruction:x\nQuery:", "Instruction:x\nQuery:"),
        ("model.like", "251215", "251215"),
        ("api.base_url", "https://example.com/api/v3", "https://example.com/api/v3"),
        ("api.api_key_env", "MY_KEY", "MY_KEY"),
        ("quota.rpm", 600, 600),
        ("quota.tpm", 120_000, 120_000),
        ("quota.headroom", 0.5, 0.5),
        ("quota.headroom", 1, 1.0),
        ("quota.lanes", 4, 4),
        ("quota.account", "team-a", "team-a"),
        ("quota.redis_url", "rediss://user@host:6379/0", "rediss://user@host:6379/0"),
        ("limits.requests_in_flight", 8, 8),
        ("limits.failures_allowed", 5, 5),
        ("limits.failures_allowed", "1%", "1%"),
        ("store.uri", "s3://bucket/store", "s3://bucket/store"),
        ("store.flush_rows", 64, 64),
        ("store.flush_s", 2.5, 2.5),
        ("output.uri", "s3://bucket/out", "s3://bucket/out"),
    ],
)
def test_the_keys_that_users_rely_on(key: str, value: Any, meant: Any) -> None:
    """These keys and their meaning are pinned, in a file and with `--set`."""
    config = _parse(key, value)
    assert _look_up(config, key) == meant
    assert any(f"{known}.".startswith(f"{key}.") for known in list_keys())
    assert parse_config(SMALLEST, [f"{key}={yaml.safe_dump(value, default_flow_style=True)}"]) == config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quota.redis_url", "http://host"),
        ("quota.redis_url", "redis://:s3cret-word@host:6379/0"),
        ("quota.redis_url", "redis://host?password=s3cret-word"),
        ("quota.redis_password_env", "REDIS_PASSWORD"),
        ("quota.account", "a/b"),
        ("quota.account", ""),
        ("quota.unshared_s_max", 0),
    ],
)
def test_what_a_quota_cannot_be_shared_by(key: str, value: Any) -> None:
    """The error names the key. A password in a URL is an error, and the message does not contain it."""
    with pytest.raises(ConfigError, match=re.escape(key)) as raised:
        _parse(key, value)
    assert "s3cret" not in str(raised.value)


def test_what_is_left_out_has_its_default() -> None:
    """Four keys are enough; without a quota, that of the model is used, and no failure is allowed."""
    config = _parse()
    assert (config.quota.rpm, config.quota.tpm, config.quota.headroom) == (None, None, 0.98)
    assert (config.limits.requests_in_flight, config.limits.failures_allowed) == (256, 0)
    assert (config.store.flush_rows, config.store.flush_s) == (256, 10)
    assert (config.model.sparse, config.model.instructions, config.manifest.keep) == (False, None, ())
    assert config.api.api_key_env == "ARK_API_KEY"
    assert not config.starts_emulator
    assert _parse("api.base_url", "emulator").starts_emulator


@pytest.mark.parametrize("key", ["manifest.uris", "model.name", "store.uri", "output.uri"])
def test_a_missing_key_is_named(key: str) -> None:
    """The error names the missing key, or its section if that is missing."""
    section, name = key.split(".")
    for raw in ({**SMALLEST, section: {}}, {other: SMALLEST[other] for other in SMALLEST if other != section}):
        with pytest.raises(ConfigError, match=rf"\b{section}(\.{name})? is missing"):
            parse_config(raw)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("quota.rmp", "quota.rpm"),
        ("quotas", "quota"),
        ("rpm", "quota.rpm"),
        ("model.dimension", "model.dimensions"),
        ("limits.flush_rows", "store.flush_rows"),
        ("manifest.columns.texts", "manifest.columns.text"),
        ("emulator.latency", "emulator.latency_ms"),
        ("api.api_key", "api.api_key_env"),
    ],
)
def test_an_unknown_key_names_the_nearest(wrong: str, near: str) -> None:
    """A misspelled key, or a key in the wrong section, is an error with the most similar key."""
    with pytest.raises(ConfigError, match=rf"unknown key {wrong}: did you mean {near}\?"):
        _parse(wrong, 1)


def test_an_unknown_key_does_not_show_its_value() -> None:
    """If somebody puts the API key into the file, the message does not show it."""
    with pytest.raises(ConfigError) as caught:
        _parse("api.api_key", "sk-very-secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quota.rpm", "many"),
        ("quota.rpm", 0),
        ("quota.headroom", 2),
        ("quota.lanes", 1.5),
        ("quota", 5),
        ("model.name", ["a"]),
        ("model.sparse", "perhaps"),
        ("manifest.keep", {"a": 1}),
        ("manifest.uris", 7),
        ("store.flush_rows", 0),
        ("store.flush_s", ".nan"),
        ("limits.failures_allowed", "some"),
        ("limits.failures_allowed", "101%"),
        ("limits.failures_allowed", -1),
        ("limits.requests_in_flight", 0),
        ("limits.bytes_in_flight", 0),
        ("limits.drain_s", -1),
        ("limits.elapsed_s_max", float("nan")),
        ("limits.refusals_max", -1),
        ("emulator.latency_ms", -1),
        ("emulator.stop_code", "NoSuchCode"),
        ("api.timeout_text_s", 0),
    ],
)
def test_a_wrong_value_names_its_key(key: str, value: Any) -> None:
    """A value with a wrong type or outside its range is an error that names the key."""
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        _parse(key, value)


def test_several_mistakes_are_named_at_once() -> None:
    """All mistakes are in one error, so that the user can correct all at once."""
    with pytest.raises(ConfigError) as caught:
        parse_config({**SMALLEST, "quota": {"rpm": "x", "tpm": "y"}})
    assert {line.split(":")[0] for line in str(caught.value).splitlines()} == {"quota.rpm", "quota.tpm"}


@pytest.mark.parametrize("name", ["id", "dense", "fingerprint", "row"])
def test_a_kept_column_may_not_have_the_name_of_ours(name: str) -> None:
    """A kept column with the name of an output column is an error: the output can't have both."""
    with pytest.raises(ConfigError, match=rf"manifest\.keep: '{name}'"):
        _parse("manifest.keep", ["price", name])


def test_keeping_the_id_is_explained() -> None:
    """The output has the id already. A column `id` that is not the row's id has to be renamed."""
    with pytest.raises(ConfigError, match=r"in the output already.*remove it from keep"):
        _parse("manifest.keep", ["id"])
    with pytest.raises(ConfigError, match="another meaning; rename"):
        parse_config({**SMALLEST, "manifest": {"uris": "m.jsonl", "keep": "id", "columns": {"id": "key"}}})


def test_settings_are_laid_over_the_file(tmp_path: Path) -> None:
    """Later settings take precedence, missing sections are added, and values are read as YAML."""
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump({**SMALLEST, "quota": {"rpm": 1, "tpm": 2}}), "utf-8")
    settings = [
        "quota.rpm=5",
        "quota.rpm=6",
        "api.base_url=emulator",
        "manifest.uris=[a, b]",
        "model.like=",
        "store.uri=a=b",
    ]
    config = load_config(str(file), settings)
    assert (config.quota.rpm, config.quota.tpm, config.api.base_url) == (6, 2, "emulator")
    assert (config.manifest.uris, config.model.like, config.store.uri) == (("a", "b"), None, "a=b")


@pytest.mark.parametrize(
    "setting",
    ["quota.rpm", "=5", "", "quota.rpm=[", "quota.rpm=2024-99-99", "quota.rpm=!!int x",
        "manifest.uris=0x" + "f" * 5_000, "quota.rpm=" + "[" * 5_000,
     "quota.rpm=" + "9" * 5_000, "quota.rpm=!!python/object:os.x 1", "quota.=1", ".rpm=1"],
)  # fmt: skip
def test_a_setting_that_is_none_is_an_error(setting: str) -> None:
    """A malformed setting, also one for which PyYAML raises an unexpected exception, is a ConfigError."""
    with pytest.raises(ConfigError):
        parse_config(SMALLEST, [setting])


@pytest.mark.parametrize(
    "content", [b"a: [", b"\xff\xfe\x00", b"a: 2024-99-99", b"just text", b"", b"- 1", b"a: !!int ''", b"[" * 5_000]
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: bytes) -> None:
    """Invalid YAML, invalid UTF-8, and YAML that is not a mapping are ConfigErrors."""
    file = tmp_path / "x.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.yaml|must be a mapping"):
        load_config(str(file))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("store: {uri: a}\noutput: {uri: b}\nstore: {uri: c}\n", "'store' is given twice, in line 1 and in line 3"),
        ("quota:\n  rpm: 1\n  tpm: 2\n  rpm: 3\n", "'rpm' is given twice, in line 2 and in line 4"),
        ('store: {uri: a, "uri": b}\n', "'uri' is given twice, in line 1 and in line 1"),
        ("manifest:\n  columns:\n    - {text: a, text: b}\n", "'text' is given twice"),
        ("x: &x {rpm: 1}\nquota: {<<: *x, rpm: 2, rpm: 3}\n", "'rpm' is given twice, in line 2"),
        ("x: &x {rpm: 1, rpm: 2}\nquota: {<<: *x}\n", "'rpm' is given twice, in line 1"),
        ("? store\n: {uri: a}\n? store\n: {uri: b}\n", "'store' is given twice, in line 1 and in line 3"),
    ],
)
def test_a_key_that_is_given_twice_is_an_error(text: str, says: str, tmp_path: Path) -> None:
    """YAML would drop the first one; it is found at every level, and its lines are named."""
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_config(str(tmp_path / "c.yaml"))


def test_merged_keys_may_be_replaced(tmp_path: Path) -> None:
    """`<<` brings in defaults, also twice; a key of the mapping itself, or of an alias used twice, replaces them."""
    path = tmp_path / "c.yaml"
    path.write_text(
        "manifest: &m {uris: a, keep: x}\nmodel: {name: doubao-embedding-vision-251215}\noutput: {uri: out}\n"
        "store: {uri: s}\nquota: {rpm: 1, tpm: 2}\n"
    )
    assert load_config(str(path), ["manifest={<<: {uris: a, keep: b}, <<: {format: csv}, uris: c}"]).manifest.uris == (
        "c",
    )
    with pytest.raises(ConfigError, match="'uris' is given twice"):
        load_config(str(path), ["manifest={uris: a, uris: b}"])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file, a folder, and a file that is too large for a config are ConfigErrors with the path."""
    with pytest.raises(ConfigError, match=r"config .*missing\.yaml does not exist"):
        load_config(str(tmp_path / "missing.yaml"))
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(str(tmp_path))
    (tmp_path / "large.yaml").write_bytes(b"#" * (CONFIG_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match=r"large\.yaml is larger than"):
        load_config(str(tmp_path / "large.yaml"))


_SCALARS: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4) | st.dates()
    | st.sampled_from(["", "emulator", "1%", "x" * 500])
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_SCALARS, inner, max_size=3), max_leaves=6
)


@given(st.dictionaries(st.sampled_from(list_keys()) | st.text(max_size=8), _VALUES, max_size=5), st.booleans())
def test_no_document_is_a_traceback(values: dict[str, Any], with_smallest: bool) -> None:
    """Any YAML values, with known or unknown keys, give a config or a ConfigError."""
    raw: dict[Any, Any] = copy.deepcopy(SMALLEST) if with_smallest else {}
    for key, value in values.items():
        inner: Any = raw
        *sections, last = key.split(".")
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                break
        else:
            inner[last] = value
    try:
        config = parse_config(raw)
    except ConfigError:
        return
    assert isinstance(config, Config)


@given(_VALUES)
def test_no_top_level_is_a_traceback(raw: Any) -> None:
    """Any document without the required sections is a ConfigError."""
    with pytest.raises(ConfigError):
        parse_config(raw)


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.name)
def test_the_configs_of_this_project_load(path: Path) -> None:
    """All example configs load, and their models support the requested options."""
    config = load_config(str(path))
    check_options(config.model)


def test_a_config_is_repeated_as_json() -> None:
    """The description of a config has all sections, and parsing the description gives the same config."""
    config = _parse("quota.rpm", 600)
    described = orjson.loads(orjson.dumps(describe_config(config)))
    assert described["quota"]["rpm"] == 600
    assert set(described) == {key.split(".")[0] for key in list_keys()}
    assert parse_config(described) == config


def test_a_repeated_config_holds_no_secret() -> None:
    """In the description, passwords and signatures in URIs are masked."""
    described = describe_config(_parse("manifest.uris", ["https://u:hunter2@host/a.jsonl?X-Tos-Signature=0123456789"]))
    text = orjson.dumps(described).decode()
    assert "hunter2" not in text
    assert "0123456789" not in text


def test_the_emulators_options_are_checked_alike() -> None:
    """`arkbeam emulator --set` accepts the keys of the `emulator` section, without its name."""
    options = parse_emulator(["rpm=600", "faults.error_500=0.5"])
    assert (options.rpm, options.faults.error_500) == (600, 0.5)
    with pytest.raises(ConfigError, match=r"faults\.eror_500: did you mean (emulator\.)?faults\.error_500"):
        parse_emulator(["faults.eror_500=1"])
    with pytest.raises(ConfigError, match="rpm"):
        parse_emulator(["rpm=x"])


@pytest.mark.parametrize(
    ("allowed", "rows", "count"),
    [(0, 100, 0), (5, 3, 5), ("5", 3, 5), ("1%", 300, 3), ("1%", 99, 0), ("29%", 100, 29), ("0.57%", 10_000, 57),
     (" 100% ", 7, 7), ("0%", 7, 0), ("50%", 0, 0)],
)  # fmt: skip
def test_failures_are_allowed_by_number_or_share(allowed: int | str, rows: int, count: int) -> None:
    """A share is of all rows and is rounded down; a whole result is exact in spite of floating point."""
    assert LimitsOptions(failures_allowed=allowed).count_failures_allowed(rows) == count
