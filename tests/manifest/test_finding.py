"""Finding the files that `manifest.uris` names: links, hidden names, odd names, and what the run itself writes."""

import json
import os
import re
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from arkbeam.ark.models import ModelOptions
from arkbeam.ark.wire import ModelSpec
from arkbeam.base.errors import ManifestError
from arkbeam.base.records import ServiceKind
from arkbeam.base.schema import FAILURES
from arkbeam.manifest.finding import WrittenFolder, find_files
from arkbeam.manifest.globs import is_hidden
from arkbeam.manifest.options import ManifestOptions, ReadContext
from arkbeam.manifest.read import read_shard
from arkbeam.manifest.shards import Manifest, cut_shards, list_manifests
from arkbeam.manifest.staging import request_from_json
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.s3 import S3
from tests.web import Web

CONTEXT = ReadContext(ServiceKind.ARK, ModelSpec.of(ModelOptions("doubao-embedding-vision-251215", 1024)))
ODD_NAMES = (
    "a?1.jsonl",
    "a?2.jsonl",
    "a#1.jsonl",
    "a#2.jsonl",
    "a%20b.jsonl",
    "a b.jsonl",
    "a::b.jsonl",
    "zip::c.jsonl",
    "star*.jsonl",
    "range[1].jsonl",
    "range1.jsonl",
    "end.jsonl ",
    "end.jsonl  ",
    " start.jsonl",
    "two\nlines.jsonl",
    "~root.jsonl",
    "file:x.jsonl",
    "back\\slash.jsonl",
    "文件.jsonl",
    "odd? dir::%41/z.jsonl",
)


def _put(folder: Path, *names: str) -> None:
    """Write manifests of one row, whose text is the name of the file."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": path.name}) + "\n")


def _list(*uris: str | Path) -> list[Manifest]:
    return list_manifests(ManifestOptions(tuple(map(str, uris))))


def _labels(*uris: str | Path) -> list[str]:
    return [manifest.label for manifest in _list(*uris)]


def _texts(*uris: str | Path) -> list[str]:
    """Read all rows."""
    options = ManifestOptions(tuple(map(str, uris)))
    return [
        request_from_json(row).request.parts[0].value
        for shard in cut_shards(list_manifests(options), 2**20)
        for chunk in read_shard(shard, options, CONTEXT)
        for row in chunk.staged["request"].to_pylist()
    ]


@pytest.mark.parametrize("pattern", ["in/*/*.jsonl", "in/**/*.jsonl", "in/**"])
def test_files_in_a_linked_folder_are_read(pattern: str, tmp_path: Path) -> None:
    """A link to a folder, inside or outside the searched folder, is a folder like any other."""
    _put(tmp_path, "in/real/a.jsonl", "elsewhere/b.jsonl")
    (tmp_path / "in/linked").symlink_to("../elsewhere")
    assert _texts(tmp_path / pattern) == ["b.jsonl", "a.jsonl"]


def test_a_search_ends_whatever_links_there_are(tmp_path: Path) -> None:
    """Links that form loops, or that lead to each other in many ways, neither repeat a file nor prolong the search."""
    _put(tmp_path, *(f"in/{number}/a.jsonl" for number in range(12)))
    for one in range(12):
        (tmp_path / f"in/{one}/self").symlink_to(".")
        (tmp_path / f"in/{one}/up").symlink_to("../..")
        for other in range(12):
            (tmp_path / f"in/{one}/to-{other}").symlink_to(f"../{other}")
    assert sorted(_labels(tmp_path / "in/**/*.jsonl")) == sorted(f"{number}/a.jsonl" for number in range(12))
    assert len(_labels(tmp_path / "in/*/*/*/*.jsonl")) == 12


def test_links_to_files_are_read_as_their_targets(tmp_path: Path) -> None:
    """Hugging Face's cache links each name to a blob, Kubernetes to a file below `..data`: size and time are the target's."""
    _put(tmp_path, "blobs/abc", "map/..2024/a.jsonl")
    (tmp_path / "snapshots/r1").mkdir(parents=True)
    (tmp_path / "snapshots/r1/train.jsonl").symlink_to("../../blobs/abc")
    (tmp_path / "map/..data").symlink_to("..2024")
    (tmp_path / "map/a.jsonl").symlink_to("..data/a.jsonl")
    assert _texts(tmp_path / "snapshots/*/*.jsonl", tmp_path / "map/**") == ["a.jsonl", "abc"]
    (found,) = _list(tmp_path / "snapshots/r1/*.jsonl")
    assert found.bytes == (tmp_path / "blobs/abc").stat().st_size
    assert found == _list(tmp_path / "snapshots/r1/train.jsonl")[0]


def test_a_link_whose_target_changes_is_noticed(tmp_path: Path) -> None:
    """A config map is updated by a link that is put in place of the old one; the rows of both must not be mixed."""
    _put(tmp_path, "1/a.jsonl", "2/a.jsonl")
    os.utime(tmp_path / "2/a.jsonl", (1, 1))
    (tmp_path / "data").symlink_to("1")
    options = ManifestOptions(f"{tmp_path}/data/*.jsonl")
    (shard,) = cut_shards(list_manifests(options), 2**20)
    (tmp_path / "data").unlink()
    (tmp_path / "data").symlink_to("2")
    with pytest.raises(ManifestError, match="has changed while it was read"):
        list(read_shard(shard, options, CONTEXT))


def test_each_real_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several names, the one with the fewest links counts, then one without `..`; the others are listed."""
    _put(tmp_path, "in/x.jsonl", "in/real/a.jsonl")
    (tmp_path / "in/latest.jsonl").symlink_to("x.jsonl")
    (tmp_path / "in/again").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert _texts("in/../in/x.jsonl", "in/x.jsonl") == ["x.jsonl"]
    assert _labels("in/*/a.jsonl") == ["real/a.jsonl"]
    assert _labels("in/again/a.jsonl", "in/real/a.jsonl") == ["real/a.jsonl"]
    (found,) = _list("in/../in/x.jsonl", "in/*.jsonl")
    assert found.uri == f"{tmp_path}/in/x.jsonl"
    assert found.other_names == (f"{tmp_path}/in/../in/x.jsonl", f"{tmp_path}/in/latest.jsonl")


def test_hard_links_are_files_of_their_own(tmp_path: Path) -> None:
    """Copies made of hard links (`cp -l`) are read as any copy is."""
    _put(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").hardlink_to(tmp_path / "a.jsonl")
    assert _texts(tmp_path / "*.jsonl") == ["a.jsonl", "a.jsonl"]


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    """The rows of a file that can't be reached are never left out; what is not a regular file is no manifest."""
    _put(tmp_path, "a.jsonl")
    os.mkfifo(tmp_path / "b.jsonl")
    assert _labels(tmp_path / "*.jsonl") == ["a.jsonl"]
    for target in ("missing", "c.jsonl"):
        (tmp_path / "c.jsonl").symlink_to(target)
        with pytest.raises(ManifestError, match=r"c\.jsonl is a symbolic link that leads to no file"):
            _list(tmp_path / "*.jsonl")
        (tmp_path / "c.jsonl").unlink()


def test_a_folder_that_can_not_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that lists files would go on without those below the folder."""
    _put(tmp_path, "in/a.jsonl", "in/locked/b.jsonl")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ManifestError, match=r"Permission denied: .*locked"):
        _list(tmp_path / "in/**/*.jsonl")


def test_a_link_that_can_not_be_followed_is_an_error(tmp_path: Path) -> None:
    """It may lead to a folder of manifests, which would be left out. A link to itself leads to nothing."""
    _put(tmp_path, "in/a/a.jsonl")
    (tmp_path / "in/loop").symlink_to("loop")
    assert _labels(tmp_path / "in/*/*.jsonl") == ["a/a.jsonl"]
    (tmp_path / "in/b").symlink_to("x" * 300)  # for root, no folder is locked
    with pytest.raises(ManifestError, match="File name too long"):
        _list(tmp_path / "in/*/*.jsonl")


HIDDEN = (
    "_SUCCESS",
    "_temporary/0/a.jsonl",
    "_delta_log/a.jsonl",
    ".ipynb_checkpoints/a-checkpoint.jsonl",
    "day=1/_temporary/a.jsonl",
    ".day=1/a.jsonl",
    "_b.jsonl",
    ".c.jsonl",
)
SHOWN = ("a.jsonl", "_day=1/a.jsonl", "sub.jsonl/b.jsonl")
EXPLICIT = {
    "_delta_log/*.jsonl": ["_delta_log/a.jsonl"],
    "_*/*.jsonl": ["_day=1/a.jsonl", "_delta_log/a.jsonl"],
    ".ipynb*/**": [".ipynb_checkpoints/a-checkpoint.jsonl"],
    "**/_temporary/**": ["_temporary/0/a.jsonl", "day=1/_temporary/a.jsonl"],
    "_b*": ["_b.jsonl"],
}


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of a folder on disk, in memory, or in a bucket, with hidden files and others."""
    if request.param == "local":
        _put(tmp_path, *HIDDEN, *SHOWN)
        return str(tmp_path)
    uri = "memory://hidden-test" if request.param == "memory" else request.getfixturevalue("s3").uri("in")
    filesystem, path = fsspec.core.url_to_fs(uri)
    for name in (*HIDDEN, *SHOWN):
        filesystem.pipe_file(f"{path}/{name}", b'{"text": "a"}\n')
    return uri


def test_wildcards_match_no_hidden_names(folder: str) -> None:
    """What Spark, Delta and notebooks keep beside the data is not data, unless the pattern names it."""
    assert _labels(f"{folder}/**/*.jsonl") == sorted(SHOWN)
    assert _labels(f"{folder}/**") == sorted(SHOWN)
    assert _labels(f"{folder}/*/*.jsonl") == sorted(name for name in SHOWN if "/" in name)
    for pattern, names in EXPLICIT.items():
        found = [manifest.uri.partition("hidden-test/")[2] or manifest.uri for manifest in _list(f"{folder}/{pattern}")]
        assert [uri.removeprefix(f"{folder}/") for uri in found] == names, pattern


NAMES = st.sampled_from(["a", "b.jsonl", "a.b", "_x", "_x=1", ".y", "[a]", "a*"])
PARTS = st.sampled_from(["a", "*", "**", "a*", "?", "*.jsonl", "[ab]", "[!a]*", "b.jsonl", "_*", ".y", "_x=*"])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.lists(NAMES, min_size=1, max_size=4), min_size=1, max_size=8), st.lists(PARTS, min_size=1, max_size=4)
)
def test_a_pattern_matches_as_in_fsspec(tmp_path: Path, paths: list[list[str]], parts: list[str]) -> None:
    """Without links, hidden and special names, a glob finds the same files as fsspec's, on disk as in memory."""
    pattern = "/".join([*parts, "*"])  # the last part makes sure that the pattern has a wildcard
    root = tmp_path / os.urandom(8).hex()
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    for names in paths:
        path = root.joinpath(*names)
        if not any(above.is_file() for above in [path, *path.parents]) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
            memory.pipe_file("/top/" + "/".join(names), b"x")
    known = {path.removeprefix(f"{root}/") for path in fsspec.filesystem("file").glob(f"{root}/{pattern}")}
    known = {name for name in known if (root / name).is_file()}

    def find(uri: str) -> set[str]:
        try:
            return {one.uri.removeprefix("memory:///top/").removeprefix(f"{root}/") for one in find_files([uri])}
        except ManifestError:
            return set()

    found = find(f"{root}/{pattern}")
    plain = {name for name in known if not any(map(is_hidden, name.split("/")))}
    assert plain <= found
    assert all(re.search(r"(^|/)(_|\.)", name) or "[a]" in name or "a*" in name for name in found - plain)
    assert {name for name in find(f"memory://top/{pattern}") if "[" not in name} == {
        name for name in found & known if "[" not in name
    }


@pytest.mark.parametrize("name", ODD_NAMES)
def test_local_names_are_literal(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever characters a name has, the file is found by it, as a path and relative, and read."""
    _put(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    for uri in (str(tmp_path / name), name, f"./{name}"):
        (found,) = _list(uri)
        assert Path(found.uri) == tmp_path / name
        assert found.label in (name, Path(name).name)
        assert _texts(uri) == [Path(name).name]


def test_different_files_have_different_labels(tmp_path: Path) -> None:
    """A glob finds files with odd names, and each has the label by which only it is named."""
    for name in ODD_NAMES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "a"}\n')
    assert sorted(_labels(tmp_path / "**")) == sorted(ODD_NAMES)


def test_objects_with_odd_names_are_read(s3: S3) -> None:
    """In a bucket as on disk; only the query of a URL is cut off."""
    names = [name for name in ODD_NAMES if "\n" not in name]
    for name in names:
        s3.put(f"in/{name}", b'{"text": "a"}\n')
    s3.put("in/folder/", b"")
    assert sorted(_labels(s3.uri("in/**"))) == sorted(names)
    assert _texts(s3.uri("in/**")) == ["a"] * len(names)
    assert _labels(s3.uri("in/a?1.jsonl"), s3.uri("in/a::b.jsonl")) == ["a::b.jsonl", "a?1.jsonl"]
    for output, taken in (("in/out", True), ("in-2/out", False)):
        written = [WrittenFolder("output.uri", s3.uri(f"{output}/usage"), "part-00000.parquet")]
        with pytest.raises(ManifestError, match=r"output\.uri") if taken else nullcontext():
            find_files([s3.uri("in/**")], written)


def test_a_name_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    """The output could not name the file, so nothing is bought."""
    _put(tmp_path, "a.jsonl")
    with open(os.fsencode(tmp_path) + b"/b\xff.jsonl", "wb") as file:
        file.write(b'{"text": "b"}\n')
    with pytest.raises(ManifestError, match=r"b\\udcff\.jsonl: its path is not valid UTF-8: rename it"):
        _list(tmp_path / "*.jsonl")


def test_file_urls_are_decoded_and_paths_are_not(tmp_path: Path) -> None:
    """`%20` is a blank in a `file://` URL alone, and a file that is really called so is found by both."""
    _put(tmp_path, "a b.jsonl", "100%25.jsonl")
    for uri in (
        f"file://{tmp_path}/a%20b.jsonl",
        f"file://localhost{tmp_path}/a%20b.jsonl",
        f"file:{tmp_path}/a%20b.jsonl",
    ):
        assert [manifest.uri for manifest in _list(uri)] == [f"{tmp_path}/a b.jsonl"]
    assert _labels(f"file://{tmp_path}/a%20*.jsonl") == ["a b.jsonl"]
    assert _labels(f"file://{tmp_path}/100%25.jsonl", tmp_path / "100%25.jsonl") == ["100%25.jsonl"]
    with pytest.raises(ManifestError, match="does not exist"):
        _list(tmp_path / "a%20b.jsonl")


def test_urls_that_differ_in_their_queries_have_different_labels(serve_web: Callable[[dict[str, bytes]], Web]) -> None:
    """A download service tells files apart by the query alone."""
    web = serve_web({"get.jsonl": b'{"text": "a"}\n'})
    names = [web.url(f"good/get.jsonl?part={part}") for part in (1, 2)]
    assert _labels(*names) == names
    assert _labels(names[0]) == ["get.jsonl"]
    assert _texts(*names) == ["a", "a"]


def _written(output: str | Path, store: str | Path) -> list[WrittenFolder]:
    return [
        WrittenFolder("output.uri", f"{output}/usage", "part-00000.parquet"),
        WrittenFolder("output.uri", f"{output}/run.json"),
        WrittenFolder("store.uri", f"{store}/segments", "run/0-0.parquet"),
    ]


@pytest.mark.parametrize("remote", [False, True], ids=["local", "memory"])
@pytest.mark.parametrize(
    ("pattern", "output", "store", "key"),
    [
        ("data/**/*.parquet", "data/out", "store", "output.uri"),
        ("data/**/*.parquet", "out", "data/store", "store.uri"),
        ("data/*/*/*.parquet", "data/out", "store", "output.uri"),
        ("data/**", "data/out", "store", "output.uri"),
        ("**/*.json", "data/out", "store", "output.uri"),
        ("data/**/part-*.parquet", "data", "store", "output.uri"),
        ("data/**/*.parquet", "data-2/out", "data-2/store", None),
        ("data/*.parquet", "data/out", "data/store", None),
        ("data/**/*.jsonl", "data/out", "data/store", None),
        ("data/**/*.parquet", "data/_out", "data/.store", None),
        ("data/sub/**/*.parquet", "data", "data", None),
    ],
)
def test_a_glob_that_takes_in_what_the_run_writes_is_an_error(
    pattern: str, output: str, store: str, key: str | None, remote: bool, tmp_path: Path
) -> None:
    """The next run would read its own output as manifests; it is said before the first run, when nothing is there yet."""
    names = ("data/m.jsonl", "data/m.parquet", "data/sub/m.parquet", "data/m.json")
    if remote:
        base = "memory://apart-test"
        for name in names:
            fsspec.filesystem("memory").pipe_file(f"/apart-test/{name}", b"x")
    else:
        _put(tmp_path, *names)
        base = str(tmp_path)
    written = _written(f"{base}/{output}", f"{base}/{store}")
    if key is None:
        assert find_files([f"{base}/{pattern}"], written)
    else:
        with pytest.raises(ManifestError, match=rf"also matches the files that this run writes to .* \({key}\)"):
            find_files([f"{base}/{pattern}"], written)


def test_links_do_not_hide_that_a_run_reads_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links in the pattern, in the place of the output, and in what the pattern matches are resolved."""
    _put(tmp_path, "data/m.parquet", "data/sub/m.parquet")
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "other/out").mkdir(parents=True)
    (tmp_path / "data/sub/far").symlink_to(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    for pattern, output in (
        ("link/**/*.parquet", "data/out"),
        ("data/**/*.parquet", "link/out"),
        ("data/../data/**/*.parquet", f"file://{tmp_path}/link/out"),
        ("data/**/*.parquet", "other/out"),
    ):
        with pytest.raises(ManifestError, match="also matches the files that this run writes"):
            find_files([pattern], _written(output, "store"))
    assert find_files(["data/*.parquet"], _written("other/out", "link/sub"))


def test_a_manifest_that_the_run_would_replace_is_an_error(tmp_path: Path) -> None:
    """A file of the output can't be named as a manifest either; a file beside it can."""
    _put(tmp_path, "out/usage/part-00001.parquet", "out/m.jsonl")
    written = _written(tmp_path / "out", tmp_path / "store")
    assert list_manifests(ManifestOptions(f"{tmp_path}/out/m.jsonl"), written)
    with pytest.raises(ManifestError, match=r"is a file that this run writes \(output\.uri\)"):
        list_manifests(ManifestOptions(f"{tmp_path}/out/usage/*.parquet"), written)


def test_a_failure_table_is_never_taken_for_another_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If its footer can't be read, that is an error: its rows would be read as rows without input."""
    path = tmp_path / "failures.parquet"
    pq.write_table(FAILURES.empty_table(), path)
    opened = LocalFileSystem._open

    def fail_once(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(LocalFileSystem, "_open", opened)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(LocalFileSystem, "_open", fail_once)
    with pytest.raises(ManifestError, match="Input/output error"):
        _list(path)
    assert _list(path) == []


@pytest.mark.parametrize(
    ("status", "says"), [(404, "does not exist"), (403, "answered 403 Forbidden"), (503, "answered 503")]
)
def test_what_a_server_answers_is_said(status: int, says: str, serve_web: Callable[[dict[str, bytes]], Web]) -> None:
    """The library that opens URLs takes every failure for a missing file. A pattern is asked for as a file first."""
    url = serve_web({}).url(f"status/{status}")
    with pytest.raises(ManifestError, match=says) as caught:
        _list(url)
    assert ("does not exist" in str(caught.value)) == (status == 404)
    if status != 404:
        with pytest.raises(ManifestError, match=says):
            _list(f"{url}?*")


def test_a_host_that_can_not_be_reached_is_named(serve_web: Callable[[dict[str, bytes]], Web]) -> None:
    """Refused connections, names without an address and servers without TLS are told apart."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]  # nothing listens there
        for name in ("m.jsonl?sig=secret", "*.jsonl"):
            with pytest.raises(ManifestError, match=rf"can't be read: connection refused by 127\.0\.0\.1:{port}$"):
                _list(f"http://127.0.0.1:{port}/{name}")
    with pytest.raises(ManifestError, match=r"the name of the host nowhere\.invalid can't be resolved$"):
        _list("https://nowhere.invalid/m.jsonl")
    with pytest.raises(ManifestError, match=r"TLS with 127\.0\.0\.1:\d+ failed"):
        _list(f"https://127.0.0.1:{serve_web({}).port}/m.jsonl")
