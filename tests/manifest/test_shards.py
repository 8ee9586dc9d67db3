"""Finding manifests, labelling them, and cutting them into shards."""

import gzip
import os
import pickle
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.ark.models import ModelOptions
from arkbeam.ark.wire import ModelSpec
from arkbeam.base.errors import ManifestError
from arkbeam.base.records import ServiceKind
from arkbeam.manifest.options import ColumnMap, ManifestOptions, ReadContext
from arkbeam.manifest.read import read_shard
from arkbeam.manifest.shards import Manifest, Shard, cut_shards, list_manifests, manifest_folders

LINE = b'{"text": "a"}\n'


def _put(folder: Path, *names: str, data: bytes = LINE) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _labels(*uris: str | Path) -> list[str]:
    return [manifest.label for manifest in list_manifests(ManifestOptions(tuple(map(str, uris))))]


def test_a_single_manifest_is_labelled_by_its_file_name(tmp_path: Path) -> None:
    """The folders above it are not part of the label."""
    _put(tmp_path, "deep/down/items.jsonl")
    assert _labels(tmp_path / "deep/down/items.jsonl") == ["items.jsonl"]


def test_manifests_of_equal_names_have_labels_of_their_own(tmp_path: Path) -> None:
    """Labels are paths below the common folder, sorted, and do not change when a glob matches more files."""
    _put(tmp_path, "day=1/part-0.jsonl")
    assert _labels(tmp_path / "day=*/*.jsonl") == ["day=1/part-0.jsonl"]
    _put(tmp_path, "day=2/part-0.jsonl")
    assert _labels(tmp_path / "day=*/*.jsonl") == ["day=1/part-0.jsonl", "day=2/part-0.jsonl"]
    assert _labels(tmp_path / "day=2/part-0.jsonl", tmp_path / "day=1/*.jsonl") == [
        "day=1/part-0.jsonl",
        "day=2/part-0.jsonl",
    ]


def test_a_manifest_that_is_named_twice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Globs may overlap, and a file has one URI however it is written."""
    _put(tmp_path, "a.jsonl", "b.jsonl")
    monkeypatch.chdir(tmp_path)
    found = list_manifests(ManifestOptions((f"{tmp_path}/*.jsonl", "a.jsonl", f"file://{tmp_path}/a.jsonl")))
    assert [manifest.uri for manifest in found] == [f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"]
    assert manifest_folders(found) == (str(tmp_path),)


def test_globs_skip_marks_and_folders(tmp_path: Path) -> None:
    """A glob over the output of another job matches only its data files."""
    _put(tmp_path, "_SUCCESS", ".part-0.crc", "part-0.jsonl", "sub/part-1.jsonl")
    assert _labels(tmp_path / "*") == ["part-0.jsonl"]
    assert _labels(tmp_path / "**") == ["part-0.jsonl", "sub/part-1.jsonl"]


def test_a_file_whose_name_holds_wildcards_is_found(tmp_path: Path) -> None:
    """A path that exists is used as it is, even if it contains wildcard characters."""
    _put(tmp_path, "a[1].jsonl", "a1.jsonl")
    assert _labels(tmp_path / "a[1].jsonl") == ["a[1].jsonl"]


def test_object_stores_are_listed() -> None:
    """Files of any fsspec scheme are listed and labelled like local files."""
    store = fsspec.filesystem("memory")
    for day in (1, 2):
        store.pipe_file(f"/shards-test/day={day}/part.csv.gz", b"x")
    found = list_manifests(ManifestOptions("memory://shards-test/*/part.csv.gz"))
    assert replace(found[1], version="") == Manifest(
        "memory:///shards-test/day=2/part.csv.gz", "day=2/part.csv.gz", "csv", "gzip", 1
    )
    assert manifest_folders(found) == ("memory:///shards-test/day=1", "memory:///shards-test/day=2")


def test_manifests_of_several_stores_are_labelled_by_their_uris(tmp_path: Path) -> None:
    """Without a common folder the label is the whole URI."""
    fsspec.filesystem("memory").pipe_file("/mixed/a.jsonl", LINE)
    _put(tmp_path, "a.jsonl")
    assert _labels(tmp_path / "a.jsonl", "memory://mixed/a.jsonl") == [f"{tmp_path}/a.jsonl", "memory:///mixed/a.jsonl"]


@pytest.mark.parametrize(
    ("uris", "says"),
    [
        (("{root}/missing.jsonl",), "{root}/missing.jsonl"),
        (("{root}/good.jsonl", "{root}/none-*.jsonl"), "no file matches {root}/none-*.jsonl"),
        (("{root}",), "is a folder"),
        (("{root}/data.bin",), "set manifest.format"),
        (("{root}/a.parquet.gz",), "compressed as a whole"),
        (("nosuchscheme://a/b.jsonl",), "nosuchscheme://a/b.jsonl"),
        (("simplecache::file://{root}/good.jsonl",), "chained"),
        ((), "manifest.uris is empty"),
    ],
)
def test_what_can_not_be_listed_stops_the_run_and_is_named(uris: tuple[str, ...], says: str, tmp_path: Path) -> None:
    """A missing file, a glob without a match and similar errors are reported before anything is read."""
    _put(tmp_path, "good.jsonl", "data.bin", "a.parquet.gz")
    with pytest.raises(ManifestError) as caught:
        list_manifests(ManifestOptions(tuple(uri.format(root=tmp_path) for uri in uris)))
    assert says.format(root=tmp_path) in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_empty_file_among_others_has_no_shard(tmp_path: Path) -> None:
    """Jobs that write part files leave empty ones; they are not an error."""
    _put(tmp_path, "a.jsonl", data=b"")
    _put(tmp_path, "b.jsonl")
    shards = cut_shards(list_manifests(ManifestOptions(f"{tmp_path}/*.jsonl")), 100)
    assert [shard.label for shard in shards] == ["b.jsonl"]


@pytest.mark.parametrize(
    ("name", "format_", "compression"),
    [
        ("a.jsonl", "jsonl", None),
        ("a.NDJSON", "jsonl", None),
        ("a.jsonl.zst", "jsonl", "zstd"),
        ("a.csv.gz", "csv", "gzip"),
        ("a.tsv", "tsv", None),
        ("a.parquet", "parquet", None),
    ],
)
def test_the_format_is_told_by_the_name(name: str, format_: str, compression: str | None, tmp_path: Path) -> None:
    """The ending decides, after the ending of the compression is removed."""
    _put(tmp_path, name)
    (found,) = list_manifests(ManifestOptions(str(tmp_path / name)))
    assert (found.format, found.compression) == (format_, compression)


def test_the_config_may_name_the_format(tmp_path: Path) -> None:
    """`manifest.format` is for names without a known ending; compression is still taken from the name."""
    _put(tmp_path, "a.data.gz")
    (found,) = list_manifests(ManifestOptions(str(tmp_path / "a.data.gz"), format="csv"))
    assert (found.format, found.compression) == ("csv", "gzip")


def test_plain_jsonl_is_cut_by_size_and_numbered_through(tmp_path: Path) -> None:
    """Ranges cover each file exactly once; shard numbers are consecutive, and those of one manifest are adjacent."""
    _put(tmp_path, "a.jsonl", data=b"x" * 250)
    _put(tmp_path, "b.jsonl.gz", data=b"x" * 250)
    _put(tmp_path, "c.jsonl", data=b"x" * 100)
    shards = cut_shards(list_manifests(ManifestOptions(f"{tmp_path}/*")), 100)
    assert [shard.number for shard in shards] == [0, 1, 2, 3, 4]
    assert [(shard.start, shard.end) for shard in shards if shard.label == "a.jsonl"] == [
        (0, 100),
        (100, 200),
        (200, 250),
    ]
    assert [shard.label for shard in shards] == ["a.jsonl"] * 3 + ["b.jsonl.gz", "c.jsonl"]
    assert pickle.loads(pickle.dumps(shards)) == shards


def test_parquet_is_cut_between_row_groups(tmp_path: Path) -> None:
    """Small row groups share a shard, and each belongs to exactly one shard."""
    table = pa.table({"text": [f"text number {index}" for index in range(1_000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    manifests = list_manifests(ManifestOptions(str(tmp_path / "a.parquet")))
    for bytes_max in (1, 5_000, 10**9):
        shards = cut_shards(manifests, bytes_max)
        assert [index for shard in shards for index in range(shard.start, shard.end)] == list(range(10))
        assert len(shards) == {1: 10, 10**9: 1}.get(bytes_max, len(shards))


def test_a_file_that_is_no_parquet_stops_the_run(tmp_path: Path) -> None:
    """The footer is read when the file is cut, and the error names the file."""
    _put(tmp_path, "a.parquet", data=b"no parquet")
    with pytest.raises(ManifestError, match=r"a\.parquet"):
        cut_shards(list_manifests(ManifestOptions(str(tmp_path / "a.parquet"))), 100)


def test_a_shard_is_small_to_send() -> None:
    """Shards are elements of the Beam pipeline, so they must be small."""
    shard = Shard(3, "/data/items.jsonl", "items.jsonl", "jsonl", None, 0, 100)
    assert len(pickle.dumps(shard)) < 300


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet"])
@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_a_manifest_that_changes_after_it_was_cut_ends_the_run(tmp_path: Path, name: str, moment: str) -> None:
    """Other bytes under the same name, even of the same size, would cut rows apart, double or lose them."""
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": ["a", "b"]}), path)
    else:
        line = b"text\na\n" if name.endswith("csv") else LINE
        path.write_bytes(gzip.compress(line) if name.endswith("gz") else line)
    options = ManifestOptions(str(path), columns=ColumnMap(text=("text",)))
    (shard,) = cut_shards(list_manifests(options), 10**6)
    context = ReadContext(ServiceKind.ARK, ModelSpec.of(ModelOptions("doubao-embedding-vision-251215", 1024)))
    assert sum(chunk.rows for chunk in read_shard(shard, options, context)) == (2 if name.endswith("parquet") else 1)
    reading = read_shard(shard, options, context)
    if moment == "meanwhile":
        next(reading)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    with pytest.raises(ManifestError, match=rf"{name} has changed while it was read: run again"):
        list(reading)
