"""The columns of manifests: what one shard reports, what all report together, and how it is described."""

from typing import Any

import pytest
from arkbeam.base.records import Failure
from arkbeam.manifest.columns import (
    NAMES_CHARS_MAX,
    ColumnSurvey,
    ColumnWatch,
    ShardColumns,
    describe_found,
    describe_missing,
    find_nearest,
    named_columns,
    survey_columns,
)
from arkbeam.manifest.options import ColumnMap, ManifestOptions
from hypothesis import given
from hypothesis import strategies as st

NAMED = ("a", "b")
_objects = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.none() | st.text(max_size=1))
_rows = st.lists(_objects | st.none() | st.just(Failure("bad_json", "no object")), max_size=5)


def _read(*batches: list[Any], complete: bool = True) -> ShardColumns:
    """Read batches of JSON rows of which none gives a request."""
    watch = ColumnWatch(NAMED, complete=complete)
    for batch in batches:
        watch.note_rows(batch, requests=0)
    return watch.report(sum(map(len, batches)), 0)


@given(st.lists(_rows, max_size=4))
def test_the_keys_of_json_rows_are_counted(batches: list[list[Any]]) -> None:
    """Each named column is counted in the JSON objects; other lines count for nothing. All names are found, in order."""
    objects = [row for batch in batches for row in batch if isinstance(row, dict)]
    found = _read(*batches)
    having = {name: sum(name in row for row in objects) for name in NAMED}
    assert (found.known, found.rows) == (bool(objects), len(objects))
    assert dict(found.without) == {name: len(objects) - n for name, n in having.items() if n < len(objects)}
    assert found.absent == {name for name, n in having.items() if objects and not n}
    assert list(found.names) == list(dict.fromkeys(name for row in objects for name in row))


def test_names_are_reported_only_if_needed() -> None:
    """A shard that has all named columns, and a row with a request, reports no names."""
    watch = ColumnWatch(NAMED)
    watch.note_rows([{"a": 1, "x": 1}, {"b": 1}], requests=1)
    assert watch.report(2, 1) == ShardColumns(False, True, 2, (("a", 1), ("b", 1)))
    header = ColumnWatch(NAMED)
    header.note_header(["a", "b", "x"])
    assert header.report(9, 9) == ShardColumns(True, True, 9)
    assert header.report(9, 0).names == ("a", "b", "x")


def test_a_header_holds_for_all_rows() -> None:
    """A named column that the header has not is absent from all rows, also if there are none; row keys do not matter."""
    watch = ColumnWatch(NAMED, complete=False)
    watch.note_header(["a", "c"])
    watch.note_rows([{"b": 1}], requests=0)
    assert watch.report(0, 0) == ShardColumns(True, True, 0, (("b", 0),), ("a", "c"))
    assert watch.report(0, 0).absent == {"b"}
    blank = ColumnWatch(NAMED)
    blank.note_header([])
    assert blank.report(0, 0) == ShardColumns()


def test_a_path_gives_columns_to_all_rows() -> None:
    """Columns that the path names are not absent, whatever the rows have."""
    watch = ColumnWatch(NAMED)
    watch.note_path(["a"])
    watch.note_rows([{"c": 1}], requests=0)
    found = watch.report(1, 0)
    assert (found.absent, found.names) == ({"b"}, ("a", "c"))
    whole = ColumnWatch(NAMED)
    whole.note_path(NAMED)
    whole.note_rows([{"c": 1}], requests=1)
    survey = survey_columns([("a=1/x.jsonl", whole.report(1, 1)), ("y.jsonl", _read([{"c": 1}]))])
    assert (survey.lacks["a"].manifests, survey.manifests, survey.missing) == (1, 2, ())


@pytest.mark.parametrize("keys", [[f"key {number:06}" for number in range(20_000)], ["x" * 10_000_000], ["y"]])
def test_the_names_are_bounded(keys: list[str]) -> None:
    """However many and long the keys are, a shard reports at most NAMES_CHARS_MAX characters, and whether it cut them."""
    found = _read([dict.fromkeys(keys, 1)])
    assert sum(map(len, found.names)) <= NAMES_CHARS_MAX
    assert found.cut == (len(keys) > 10_000)
    assert found.absent == set(NAMED)
    assert all(len(name) <= 200 for name in found.names)
    together = survey_columns((f"{number}.jsonl", found) for number in range(3))
    assert (together.names, together.cut) == (found.names, found.cut)


_columns = st.builds(_read, _rows, complete=st.sampled_from([True, True, True, False]))


@given(st.lists(st.tuples(st.sampled_from("xyz"), _columns), max_size=6))
def test_a_column_is_missing_only_if_no_manifest_has_it(shards: list[tuple[str, ShardColumns]]) -> None:
    """A manifest has what any of its shards has. What is missing is certain: no shard has it, and no shard hides rows."""
    shards.sort(key=lambda pair: pair[0])
    survey = survey_columns(shards)
    counted = [(manifest, one) for manifest, one in shards if one.known and one.complete]
    manifests = {manifest for manifest, _ in counted}
    lacks = {
        name: {m for m in manifests if all(name in one.absent for manifest, one in counted if manifest == m)}
        for name in NAMED
    }
    assert (survey.manifests, survey.rows) == (len(manifests), sum(one.rows for _, one in counted))
    assert {name: lack.manifests for name, lack in survey.lacks.items()} == {
        name: len(found) for name, found in lacks.items() if found
    }
    for name, lack in survey.lacks.items():
        assert lack.example == min(lacks[name])
        assert lack.rows == sum(dict(one.without).get(name, 0) for _, one in counted)
    sure = all(one.complete for _, one in shards) and bool(manifests)
    assert set(survey.missing) == {name for name in NAMED if sure and lacks[name] == manifests}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Image", "image"),
        ("IMAGE_URL", "image_url"),
        ("photos", "photo"),
        ("titel", "title"),
        (" title", "title"),
        ("ｔｉｔｌｅ", "title"),  # noqa: RUF001 - full-width letters
        ("product", "product_id"),
        ("caf\u00e9", "cafe\u0301"),
        ("price", None),
        ("", None),
    ],
)
def test_the_nearest_name(name: str, nearest: str | None) -> None:
    """A name that differs only in case, blanks or form comes first, then a similar one; a name like no other has none."""
    names = ["title", "images", "image", "image_url", "photo", "product_id", "cafe\u0301"]
    assert find_nearest(name, names) == nearest
    assert find_nearest(name, []) is None


def test_the_message_is_short_and_shows_no_secret() -> None:
    """With many and odd names, the message is one line of bounded length. It escapes what can't be seen, and masks secrets."""
    secret = "https://user:hunter2secret@host/x"
    names = (secret, "a\nb", "\ufefftitle", "z" * 500, *map(str, range(500)))
    named = {"cafe\u0301": "manifest.keep", **{f"c{number}": "manifest.keep" for number in range(300)}}
    survey = ColumnSurvey(1, 1, False, {}, tuple(named), ("caf\u00e9", *names), True)
    text = describe_missing(list(named), survey, named)
    assert len(text) < 2_500
    assert text.isprintable()
    assert "hunter2" not in text
    assert r"did you mean 'caf\xe9'?" in text
    assert "and 296 more; columns found: " in text
    assert r"'a\nb', '\ufefftitle', " in text
    assert text.endswith("and at least 485 more")
    assert describe_found(ColumnSurvey(0, 0, False, {}, (), (), False)) == "columns found: none"


def test_which_columns_the_config_names() -> None:
    """Each column is listed once, with the first key that names it; a key that is not set names none."""
    columns = ColumnMap(id="i", text=("t", "u"), image="p", sparse="s", instructions="")
    options = ManifestOptions("x", columns, keep=("t", "k"))
    keys = {"i": "id", "t": "text", "u": "text", "p": "image", "s": "sparse"}
    assert named_columns(options) == {name: f"manifest.columns.{key}" for name, key in keys.items()} | {
        "k": "manifest.keep"
    }
    assert named_columns(ManifestOptions("x")) == {}
