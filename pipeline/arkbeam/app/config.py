"""The config: a YAML file with one section for each dataclass of options. All keys are checked before anything is read.

An unknown key is an error that names the nearest known key. A config holds no secrets, only the names of the
environment variables that hold them.
"""

import dataclasses
import difflib
import reprlib
import shlex
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from arkbeam.app.output_uri import check_names, check_store
from arkbeam.app.program import program
from arkbeam.ark.client import ApiOptions
from arkbeam.ark.models import ModelOptions
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import ServiceKind
from arkbeam.base.redaction import redact, redact_uri
from arkbeam.base.schema import OWN_COLUMNS, Layout
from arkbeam.base.uris import check_credentials, lower_scheme
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.manifest.options import ManifestOptions
from arkbeam.manifest.shards import FORMATS, split_endings
from arkbeam.media import MediaOptions
from arkbeam.quota.budget import BudgetOptions
from arkbeam.quota.options import LimitsOptions, QuotaOptions
from arkbeam.store.layout import StoreOptions

CONFIG_BYTES_MAX = 1024 * 1024
EMULATOR = "emulator"
_MERGE_TAG = "tag:yaml.org,2002:merge"
_Section = typing.TypeVar("_Section")


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Where the output is written. The `output:` section of the config."""

    uri: str
    """Folder of the published files. Only one run at a time can write to it. Two names in it are replaced when a run
    starts: `{run_date}` by its date in UTC (`2026-11-26`), and `{run_id}` by its start in UTC and 8 random digits
    (`20261126T013000-5f0e9a2c`). So each day, or each run, has an output of its own; all of them use one store, which has
    each vector once. `arkbeam status CONFIG` and `arkbeam wait CONFIG` take the newest run of these outputs: of the runs
    that have files in the store, and of the folders that the URI stands for."""
    layout: Layout = Layout.PORTABLE
    """How the published files are encoded. `portable`: all common readers can read them. `compact`: with BYTE_STREAM_SPLIT, about 6 % smaller; DuckDB before 2.0, Spark before 4, ClickHouse 24 and fastparquet can't read them. Columns, types and values are the same."""
    report: bool = True
    """Write `report.html` with the output: a page that shows the run and a sample of its rows, with texts and small copies of pictures. `arkbeam report` makes it again."""

    def __post_init__(self) -> None:
        """Raise ConfigError if the URI has an unknown name in braces."""
        check_names(self.uri)


@dataclass(frozen=True, slots=True)
class Config:
    """A whole config. A missing section takes its defaults."""

    manifest: ManifestOptions
    model: ModelOptions
    store: StoreOptions
    output: OutputOptions
    api: ApiOptions = field(default_factory=ApiOptions)
    quota: QuotaOptions = field(default_factory=QuotaOptions)
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    limits: LimitsOptions = field(default_factory=LimitsOptions)
    media: MediaOptions = field(default_factory=MediaOptions)
    emulator: EmulatorOptions = field(default_factory=EmulatorOptions)

    def __post_init__(self) -> None:
        """Raise ConfigError if a kept column has the name of a column of the output."""
        for name in self.manifest.keep:
            if name == "id" and self.manifest.columns.id in (None, "id"):
                raise ConfigError(
                    "manifest.keep: 'id' is in the output already: its column id has each row's id; remove it from keep"
                )
            if name in OWN_COLUMNS:
                raise ConfigError(
                    f"manifest.keep: {name!r} is already a column of the output, with another meaning;"
                    " rename the column in the manifest"
                )

    @property
    def starts_emulator(self) -> bool:
        """True if the run starts its own emulator."""
        return self.api.base_url == EMULATOR


def list_similar_names(config: Config) -> Iterator[str]:
    """Yield a warning for each kept column whose name differs from an earlier column's in upper and lower case only."""
    columns = {name.lower(): name for name in OWN_COLUMNS}
    for name in config.manifest.keep:
        other = columns.setdefault(name.lower(), name)
        if other != name:
            yield (
                f"manifest.keep: {name!r} and the column {other!r} differ in upper and lower case only:"
                " Spark and DuckDB do not tell them apart"
            )


def load_config(path: str, settings: Sequence[str] = ()) -> Config:
    """Read a config file, and override keys by settings such as `quota.rpm=600`.

    Raise ConfigError that names the file or the key, and what to do.
    """
    file = Path(path)
    if file.is_dir() or _is_manifest_name(path):
        what = "a folder" if file.is_dir() else "a manifest"
        raise ConfigError(
            f"cannot read {path} as a config: it is {what}; `{program()} init {shlex.quote(path)}` writes a config for it"
        )
    try:
        if file.stat().st_size > CONFIG_BYTES_MAX:
            raise ConfigError(f"{path} is larger than {CONFIG_BYTES_MAX:,} bytes, too large for a config")
        raw = _load_yaml(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {redact(str(error))}") from None
    return parse_config(raw, settings)


def _is_manifest_name(path: str) -> bool:
    """True for the name of a manifest. A config may be JSON."""
    ending = split_endings(path)[1]
    return ending in FORMATS and ending != ".json"


def parse_config(raw: Any, settings: Sequence[str] = ()) -> Config:
    """Check a parsed YAML document and return it as a Config. Raise ConfigError."""
    if not isinstance(raw, dict):
        raise ConfigError("the config must be a mapping of sections such as manifest, model, store and output")
    return _settle_uris(_parse(Config, raw, settings))


def parse_published(note: Mapping[str, Any], settings: Sequence[str] = ()) -> tuple[Config, ServiceKind]:
    """Return the config of a finished output and the kind of its service, from the content of its `run.json`.

    Raise ConfigError if the config can't be used, or a setting is wrong.
    """
    try:
        return parse_config(note["config"], settings), ServiceKind(note.get("service", ServiceKind.ARK))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"the config in run.json can't be used: {type(error).__name__}: {error}") from None


def _settle_uris(config: Config) -> Config:
    """Write the schemes of manifests, store and output in lower case. Raise ConfigError for a URI with a password."""
    for uri in (*config.manifest.uris, config.store.uri, config.output.uri):
        check_credentials(uri)
    check_store(config.store.uri)
    return dataclasses.replace(
        config,
        manifest=dataclasses.replace(config.manifest, uris=tuple(map(lower_scheme, config.manifest.uris))),
        store=dataclasses.replace(config.store, uri=lower_scheme(config.store.uri)),
        output=dataclasses.replace(config.output, uri=lower_scheme(config.output.uri)),
    )


def parse_emulator(settings: Sequence[str]) -> EmulatorOptions:
    """Return the emulator's options from settings such as `rpm=600`. Raise ConfigError."""
    return _parse(EmulatorOptions, {}, settings)


def _parse(section: type[_Section], raw: dict[str, Any], settings: Sequence[str]) -> _Section:
    for setting in settings:
        raw = _set(raw, setting)
    _check_keys(raw, section, "")
    try:
        return TypeAdapter(section).validate_python(raw)
    except ValidationError as error:
        raise ConfigError(_explain_all(error)) from None


def describe_config(config: Config) -> dict[str, Any]:
    """Return the config in the form in which `run.json` repeats it, with secrets masked."""
    return typing.cast("dict[str, Any]", _redact_uris(TypeAdapter(Config).dump_python(config, mode="json")))


def _redact_uris(value: Any) -> Any:
    """Mask passwords and signatures in URIs."""
    if isinstance(value, dict):
        return {key: _redact_uris(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_redact_uris(inner) for inner in value]
    return redact_uri(value) if isinstance(value, str) else value


def list_keys() -> list[str]:
    """Return every key that a config can have, such as `quota.rpm`."""
    return list(_walk_keys(Config, ""))


def _walk_keys(section: type, prefix: str) -> typing.Iterator[str]:
    for name, kind in typing.get_type_hints(section).items():
        inner = section_of(kind)
        if inner is None or str in typing.get_args(kind):  # a plain key, or one that takes a string or a section
            yield prefix + name
        if inner is not None:
            yield from _walk_keys(inner, f"{prefix}{name}.")


def _set(raw: dict[str, Any], setting: str) -> dict[str, Any]:
    """Return a copy of the document with `key.path=value` set; the value is parsed as YAML."""
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {redact(setting, 200)}: write it as key.path=value, for example quota.rpm=600")
    try:
        value = _load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {redact(path, 200)}: the value is not valid YAML: {redact(str(error))}") from None
    head, *rest = path.split(".", 1)
    if not rest:
        return {**raw, head: value}
    inner = raw.get(head)
    return {**raw, head: _set(inner if isinstance(inner, dict) else {}, f"{rest[0]}={text}")}


def _load_yaml(text: str) -> Any:
    """Parse YAML. Exceptions that PyYAML lets through, for example for a month 13, become YAMLError."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, ValueError) as error:
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice: PyYAML would drop the first. A key may still replace one that `<<` brings."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping. Raise YAMLError if two of its keys are the same."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE_TAG:
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in lines:
                    raise yaml.YAMLError(
                        f"the key {redact(key.value, 100)!r} is given twice, in line {lines[name]} and in line {line}:"
                        " remove one of them"
                    )
                lines[name] = line
        return node


def _check_keys(raw: Mapping[Any, Any], section: type, prefix: str) -> None:
    hints = typing.get_type_hints(section)
    for key, value in raw.items():
        if key not in hints:
            raise ConfigError(_unknown(f"{prefix}{key}", [prefix + name for name in hints]))
        inner = section_of(hints[key])
        if inner is not None and isinstance(value, dict):
            _check_keys(value, inner, f"{prefix}{key}.")


def section_of(kind: Any) -> type | None:
    """Return the dataclass of a field's type, also if the type is `X | None`; None if it is not a dataclass."""
    if isinstance(kind, types.UnionType):
        kinds = [one for one in typing.get_args(kind) if dataclasses.is_dataclass(one)]
        kind = kinds[0] if kinds else None
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def _unknown(key: str, siblings: Sequence[str]) -> str:
    everywhere = list_keys()
    near = difflib.get_close_matches(key, [*siblings, *everywhere], n=1, cutoff=0.5)
    same_name = [known for known in everywhere if known.rpartition(".")[2] == key.rpartition(".")[2]]
    swapped = [known for known in siblings if sorted(known) == sorted(key)]  # rmp: rpm, although ramp is more similar
    nearest = (same_name or swapped or near or siblings)[0]
    return f"unknown key {redact(key, 200)}: did you mean {nearest}?"


def _explain_all(error: ValidationError) -> str:
    """Describe what is wrong, one line for each key.

    A key that takes a string or a section has an error for each form. Only the errors for the form in use are kept.
    """
    problems = error.errors()
    wanted = [one for one in problems if not _is_other_form(one)]
    return "\n".join(_explain(problem) for problem in (wanted or problems)[:10])


def _is_other_form(problem: Any) -> bool:
    """Return True if the error is about the form, string or section, that the value does not have."""
    if isinstance(problem["input"], dict):
        return problem["type"] in ("string_type", "enum")
    return problem["type"] == "dict_type" and any(str(step).startswith("dict[") for step in problem["loc"])


def _explain(problem: Any) -> str:
    steps = [str(step) for step in problem["loc"]]
    key = ".".join(
        step
        for step in steps
        if not step.startswith(("function", "union", "tuple[", "str", "dict[", "[key]")) and not step[0].isupper()
    )
    if problem["type"] in ("missing", "missing_argument"):
        return f"{key} is missing from the config"
    return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, but it is {_show(problem['input'])!r}"


def _show(value: Any) -> str:
    """Return a short form of a value of any size, in bounded time."""
    try:
        return redact(value if isinstance(value, str) else reprlib.repr(value), 80)
    except ValueError:  # an integer with more digits than Python converts
        return "a number too long to show"
