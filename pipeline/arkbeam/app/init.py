"""`arkbeam init`: look at a folder or at manifests, guess what they hold, and write a config that runs as it is."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from arkbeam.app.config import load_config
from arkbeam.app.config_text import Settings, make_config
from arkbeam.app.folder import FILES_MAX, Contents, write_manifest
from arkbeam.app.guess import Column, Guess, describe_columns, guess_columns
from arkbeam.app.schema import SCHEMA_NAME, schema_bytes
from arkbeam.ark.wire import ModelSpec
from arkbeam.base.errors import ConfigError, ManifestError
from arkbeam.base.records import Failure, Modality, Request
from arkbeam.base.redaction import redact
from arkbeam.base.uris import is_local
from arkbeam.manifest.cells import Binary
from arkbeam.manifest.options import ManifestOptions
from arkbeam.manifest.rows import RowParser
from arkbeam.manifest.sample import SAMPLE_ROWS, Sample, Written, guess_writing, read_sample
from arkbeam.manifest.shards import FORMATS, folder_of, list_manifests, split_endings
from arkbeam.media import MediaOptions, inspect_many, is_below, make_absolute
from arkbeam.media.options import FitOptions

MANIFESTS_LISTED = 20  # more manifests of a folder are named by a wildcard
MANIFESTS_SAMPLED = 3
MEDIA_SAMPLED = 32
_STORE = "vectors"
_TABLES = ("csv", "tsv", "parquet")  # rows of other formats may lack columns
_NOT_IN_NAMES = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found in manifests: how they are written, their columns, and what these hold."""

    uris: tuple[str, ...]
    written: Written
    sample: Sample
    columns: tuple[Column, ...]
    guess: Guess


@dataclass(frozen=True, slots=True)
class Initialised:
    """What `init` has written, and what it has found."""

    config: str
    schema: str
    manifest: str | None
    """The manifest that was made of a folder."""
    looked: Looked
    contents: Contents | None
    requests: int
    """Sampled rows that can be sent."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """A message for each code of the other sampled rows."""
    doubts: tuple[str, ...] = ()


def initialise(
    paths: Sequence[str], config: str | None = None, *, force: bool = False, files_max: int = FILES_MAX
) -> Initialised:
    """Write a config, and for a folder a manifest, beside which lies the schema for editors.

    Args:
        paths: one local folder; or manifests: files, URIs or globs.
        config: the name of the config; None: it is made from the first path.
        force: replace files that exist.
        files_max: most files of a folder that are looked at.

    Raise ConfigError if nothing usable is found, or if a file exists; ManifestError if a manifest can't be read.
    """
    if not paths:
        raise ConfigError("name a folder, or one or more manifests")
    name = _make_name(paths[0])
    target = Path(config if config is not None else f"{name}.yaml")
    made = target.with_suffix(".jsonl")
    folder = paths[0] if Path(paths[0]).is_dir() else None
    _check_free([target, *([made] if folder is not None else [])], force=force)
    if folder is None:
        looked, contents, manifest = _look(paths), None, None
    elif len(paths) > 1:
        raise ConfigError("name one folder alone, or manifests: a folder becomes one manifest")
    else:
        looked, contents, manifest = _look_at_folder(folder, made, files_max)
    if looked.guess.form == "nothing":
        raise ConfigError(_explain_nothing(looked))
    unusual = contents.unusual if contents is not None and manifest is not None else []
    settings, doubts = _settle(looked, name, folder if manifest is not None else None, unusual)
    doubts = (*looked.guess.doubts, *doubts)
    _write(target, make_config(settings, {**looked.written.reasons, **looked.guess.reasons}, doubts).encode())
    schema = target.with_name(SCHEMA_NAME)
    _write(schema, schema_bytes())
    requests, failures = _try_rows(str(target), looked)
    return Initialised(str(target), str(schema), manifest, looked, contents, requests, failures, doubts)


def describe_initialised(done: Initialised) -> dict[str, Any]:
    """Return what was found as a document."""
    looked, contents = done.looked, done.contents
    return {
        "config": done.config,
        "schema": done.schema,
        "manifest": done.manifest,
        "uris": list(looked.uris),
        "format": looked.sample.format,
        "written": dict(looked.written.settings),
        "rows_looked_at": len(looked.sample.rows) + looked.sample.bad,
        "rows_that_can_be_sent": done.requests,
        "failures": dict(done.failures),
        "columns": [asdict(column) for column in looked.columns],
        "guess": asdict(looked.guess),
        "doubts": list(done.doubts),
        "folder": None
        if contents is None
        else {
            "files": contents.files,
            "kinds": dict(contents.kinds),
            "left_out": dict(contents.left_out),
            "examples": contents.examples,
            "cut": contents.cut,
        },
    }


def _make_name(path: str) -> str:
    bare = path.rstrip("/").partition("?")[0]
    last = posixpath.basename(bare if not Path(path).is_dir() else str(Path(path).resolve()))
    stem, ending, _ = split_endings(last)
    last = stem if ending in (*FORMATS, ".txt") else last
    name = _NOT_IN_NAMES.sub("-", last.encode("utf-8", "replace").decode()).strip("-._")[:60]
    return name or "arkbeam"


def _check_free(files: Sequence[Path], *, force: bool) -> None:
    taken = [file for file in files if file.exists()]
    if taken and not force:
        raise ConfigError(f"{taken[0]} exists: name another config with --output, or replace it with --force")


def _look(uris: Sequence[str]) -> Looked:
    """Look at the first rows of manifests; of several, at those of the first three."""
    found = list_manifests(ManifestOptions(tuple(uris), format="jsonl"))  # the format does not matter for the names
    first = found[0].uri
    written = guess_writing(first)
    count = len(found[:MANIFESTS_SAMPLED])
    samples = [read_sample(one.uri, written, SAMPLE_ROWS // count) for one in found[:MANIFESTS_SAMPLED]]
    names = tuple(dict.fromkeys(name for sample in samples for name in sample.names))
    rows = tuple(row for sample in samples for row in sample.rows)
    bad = sum(sample.bad for sample in samples)
    flaw = next((sample.flaw for sample in samples if sample.flaw is not None), None)
    columns = tuple(describe_columns(names, rows))
    sample = Sample(samples[0].format, names, rows, bad, flaw)
    guess = guess_columns(columns, len(rows))
    if sample.format in _TABLES and any(set(one.names) != set(names) for one in samples):
        others = ", ".join(redact(repr(one.uri), 60) for one in found[:count])
        guess = replace(guess, doubts=(*guess.doubts, f"these manifests have different columns: {others}"))
    return Looked(tuple(uris), written, sample, columns, guess)


def _look_at_folder(folder: str, made: Path, files_max: int) -> tuple[Looked, Contents, str | None]:
    """Use the manifests of a folder if they have texts or media; else make a manifest of its files."""
    contents = Contents()
    before = made.exists()
    rows = write_manifest(folder, made, contents, files_max)
    manifests = {path: size for path, size in contents.manifests.items() if not (before and Path(path).samefile(made))}
    if manifests:
        uris = _choose_manifests(folder, manifests)
        try:
            looked = _look(uris)
        except ManifestError as error:  # such as a JSON file with the settings of another tool
            if not rows:
                raise
            contents.leave_out(f"{uris[0]} ({error})", "manifests that can't be read")
        else:
            if looked.guess.form != "nothing" or not rows:
                made.unlink(missing_ok=True)
                return looked, contents, None
    if not rows:
        found = ", ".join(f"{count:,} {reason}" for reason, count in contents.left_out.most_common(5))
        raise ConfigError(
            f"{redact(folder)} has no pictures, videos, texts or manifests that can be used: {found or 'it is empty'}"
        )
    looked = _look([str(made)])
    columns = {kind: (kind,) for kind in ("text", "image", "video") if contents.kinds[kind]}
    reasons = {kind: f"{contents.kinds[kind]:,} files, by their content" for kind in columns}
    keep = tuple(kind for kind in columns if kind != "text")
    reasons["id"] = "the path below the folder"
    guess = Guess("columns", "id", **columns, keep=keep, reasons=reasons)
    return replace(looked, guess=guess), contents, str(made)


def _choose_manifests(folder: str, manifests: Mapping[str, int]) -> list[str]:
    """Return the manifests of the ending with the most bytes, or a wildcard for many."""
    sizes = Counter[str]()
    for path, size in manifests.items():
        sizes[_ending_of(path)] += size
    ending = sizes.most_common(1)[0][0]
    chosen = sorted(os.path.relpath(path) for path in manifests if _ending_of(path) == ending)
    return chosen if len(chosen) <= MANIFESTS_LISTED else [os.path.join(os.path.relpath(folder), "**", f"*{ending}")]


def _ending_of(path: str) -> str:
    """Return all endings of a path, such as `.csv.gz`."""
    return path[len(split_endings(path)[0]) :].lower()


def _explain_nothing(looked: Looked) -> str:
    columns = ", ".join(f"{redact(repr(one.name), 40)} ({one.what})" for one in looked.columns[:10])
    more = f" and {len(looked.columns) - 10:,} more" if len(looked.columns) > 10 else ""
    hints = "".join(f"; {doubt}" for doubt in looked.guess.doubts[:3])
    bad = f"; {looked.sample.bad:,} rows can't be read: {looked.sample.flaw.message}" if looked.sample.flaw else ""
    return (
        f"no column of {redact(', '.join(looked.uris), 200)} holds texts, images or videos: {columns or 'no columns'}{more}"
        f"{hints}{bad}. If one does, write a config that maps it in manifest.columns"
    )


def _settle(looked: Looked, name: str, folder: str | None, unusual: Sequence[str]) -> tuple[Settings, tuple[str, ...]]:
    """Return the values of the config, and what was noticed about the media."""
    guess = looked.guess
    columns: dict[str, str | tuple[str, ...]] = {"id": guess.id} if guess.id is not None else {}
    if guess.form == "columns":
        columns |= {key: names for key in ("text", "image", "video") if (names := getattr(guess, key))}
    if guess.form == "body" and guess.id in ("id", "custom_id"):
        columns = {}
    roots = [os.path.realpath(folder)] if folder is not None else _find_roots(looked)
    transcode, doubts = _look_at_media(looked, roots, unusual)
    settings = Settings(
        looked.uris,
        columns,
        guess.keep,
        f"out/{name}",
        _STORE,
        looked.written.settings,
        roots,
        transcode,
        guess.form == "columns" and not (guess.image or guess.video),
    )
    return settings, doubts


def _media_uris(looked: Looked) -> list[tuple[str, Modality]]:
    """Return the sampled media that are local files, as absolute paths."""
    folder = folder_of(os.path.abspath(looked.uris[0])) if is_local(looked.uris[0]) else looked.uris[0]
    found = dict.fromkeys(
        (make_absolute(value, folder), Modality(kind))
        for kind, names in (("image", looked.guess.image), ("video", looked.guess.video))
        for name in names
        for row in looked.sample.rows
        if isinstance(value := row.get(name), str) and value and is_local(value) and not value.startswith(("[", "{"))
    )
    return list(found)[:MEDIA_SAMPLED]


def _find_roots(looked: Looked) -> list[str]:
    """Return folders to allow if sampled files lie outside the folder of the manifest."""
    media = [uri for uri, _ in _media_uris(looked)]
    if not media or not is_local(looked.uris[0]) or "*" in looked.uris[0]:
        return []
    folder = os.path.dirname(os.path.abspath(looked.uris[0]))
    outside = [uri for uri in media if not is_below(uri, [folder]) and os.path.exists(uri)]
    common = os.path.commonpath([os.path.dirname(uri) for uri in outside]) if outside else "/"
    return [folder, common] if common != "/" else []


def _look_at_media(looked: Looked, roots: Sequence[str], unusual: Sequence[str]) -> tuple[bool, tuple[str, ...]]:
    """Look at a sample of local media, and at the unusual images of a folder.

    Return whether conversion helps some, and a doubt about those that can't be sent.
    """
    media = list(dict.fromkeys([*((path, Modality.IMAGE) for path in unusual), *_media_uris(looked)]))
    if not media:
        return False, ()
    own = [os.path.dirname(os.path.abspath(looked.uris[0]))]
    options = MediaOptions(allowed_roots=tuple(roots or own))
    fitted = replace(options, fit=FitOptions(transcode=True, resize_max_pixels=1_028_608))
    before, after = (
        [uri for uri, look in inspect_many(media, one).items() if isinstance(look, Failure)]
        for one in (options, fitted)
    )
    transcode = len(after) < len(before)
    left = after if transcode else before
    if not left:
        return transcode, ()
    return transcode, (
        f"{len(left):,} of {len(media):,} files that were looked at can't be sent, such as {left[0][0]}",
    )


def _try_rows(config: str, looked: Looked) -> tuple[int, dict[str, str]]:
    """Read the sampled rows as a run with the new config does. Return how many can be sent, and why others can't."""
    loaded = load_config(config)
    parser = RowParser(loaded.manifest, ModelSpec.of(loaded.model), folder_of(os.path.abspath(looked.uris[0])))
    requests, failures = 0, dict[str, str]()
    media = {*looked.guess.image, *looked.guess.video}
    for row in looked.sample.rows:
        texts = {name: cell.text for name, cell in row.items() if type(cell) is Binary and name not in media}
        _, outcome = parser.parse({**row, **texts}, None)
        if isinstance(outcome, Request):
            requests += 1
        else:
            failures.setdefault(outcome.code, outcome.message)
    if looked.sample.flaw is not None:
        failures.setdefault(looked.sample.flaw.code, looked.sample.flaw.message)
    return requests, failures


def _write(file: Path, data: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from None
