"""`arkbeam search`: exact answers, a cache that follows the output, queries that are bought once, conditions that reach nothing."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from arkbeam.app.cli_search import _make_service
from arkbeam.ark.instructions import InstructionOptions
from arkbeam.base.errors import ConfigError, StoreError
from arkbeam.outputs.cache import cache_folder, open_corpus
from arkbeam.outputs.evaluate import judge, read_judged
from arkbeam.outputs.exact import Ranking, fuse, search_dense, search_sparse
from arkbeam.outputs.published import open_output
from arkbeam.outputs.query import DEFAULT_TASK, Query, QueryFailed, Service, Wording, choose_instructions
from arkbeam.outputs.search import Found, Mode, Searcher, name_contents, search_arguments
from arkbeam.outputs.verify import verify_output
from arkbeam.outputs.where import select_rows
from PIL import Image

from tests.outputs.conftest import TEXTS, change_part, find_part
from tests.outputs.samples import embeddings_table, write_output
from tests.places import Emulator, Place, RealService
from tests.s3 import S3

EMBEDDINGS = "embeddings/part-00000"
SAME = Wording()
RANDOM = np.random.default_rng(11)


def sparse_column(rows: list[dict[int, float]]) -> list[Any]:
    """Return sparse vectors as a column has them; an empty one becomes null."""
    return [{"indices": sorted(row), "values": [row[i] for i in sorted(row)]} if row else None for row in rows]


@pytest.fixture
def random_output(tmp_path: Path) -> tuple[Path, np.ndarray, list[dict[int, float]]]:
    """An output of 700 random rows in two parts, with its dense and its sparse vectors. Two rows are equal."""
    vectors = RANDOM.standard_normal((700, 24)).astype(np.float32) * RANDOM.uniform(0.5, 2, (700, 1)).astype(np.float32)
    vectors[650] = vectors[3]
    sparse = [
        {int(i): float(np.float32(RANDOM.uniform(0.1, 1))) for i in RANDOM.integers(0, 40, RANDOM.integers(0, 6))}
        for _ in range(700)
    ]
    numbers = range(700)
    table = embeddings_table(
        vectors, id=[f"n{n}" for n in numbers], sparse=sparse_column(sparse), third=[n % 3 for n in numbers]
    )
    write_output(tmp_path / "out", {"embeddings": [table.slice(0, 450), table.slice(450)]})
    return tmp_path / "out", vectors, sparse


def best(scores: np.ndarray, allowed: np.ndarray, count: int) -> list[int]:
    """Return the numbers of the highest scores among the allowed ones; equal scores in order."""
    order = np.lexsort((np.arange(len(scores)), -scores))
    return [int(n) for n in order if allowed[n]][:count]


@pytest.mark.parametrize("masked", [False, True])
def test_dense_search_against_numpy(random_output: Any, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are those with the highest cosines, in order, with and without a condition, whatever the size of a block."""
    folder, vectors, _ = random_output
    monkeypatch.setattr("arkbeam.outputs.cache.BLOCK_BYTES", 100 * 24 * 4)
    corpus = open_corpus(open_output(str(folder)), folder.parent / "cache")
    assert len(list(corpus.blocks())) > 2
    allowed = np.arange(700) % 3 == 0 if masked else np.ones(700, bool)
    queries = vectors[[3, 500]] + np.float32(0.01)
    wide = vectors.astype(np.float64)
    for query, found in zip(queries, search_dense(corpus, queries, 20, allowed if masked else None), strict=True):
        cosines = (
            wide @ query.astype(np.float64) / np.linalg.norm(wide, axis=1) / np.linalg.norm(query.astype(np.float64))
        )
        assert found.numbers.tolist() == best(np.round(cosines, 12), allowed, 20)
        assert found.scores == pytest.approx(cosines[found.numbers])
    assert search_dense(corpus, queries, 5, np.zeros(700, bool))[0].numbers.tolist() == []


@pytest.mark.parametrize("masked", [False, True])
def test_sparse_search_against_a_dictionary(random_output: Any, masked: bool) -> None:
    """The rows are those with the highest dot products among those that share an index with the query."""
    folder, _, sparse = random_output
    corpus = open_corpus(open_output(str(folder)), folder.parent / "cache")
    query = {1: 0.5, 7: 1.0, 39: 0.25, 1000: 3.0}
    scores = np.array([sum(value * row.get(index, 0) for index, value in query.items()) for row in sparse])
    shares = np.array([bool(row.keys() & query.keys()) for row in sparse])
    allowed = shares & (np.arange(700) % 3 == 0) if masked else shares
    mask = np.arange(700) % 3 == 0 if masked else None
    found = search_sparse(corpus, np.array(list(query)), np.array(list(query.values())), 25, mask)
    assert found.scores == pytest.approx(np.sort(scores[allowed])[::-1][:25])
    assert set(found.numbers.tolist()) <= set(np.flatnonzero(allowed).tolist())


def test_fusion() -> None:
    """A row's score is the sum of 1 / (60 + rank) over the rankings in which it is."""
    one, other = Ranking(np.array([5, 6, 7]), np.zeros(3)), Ranking(np.array([7, 8]), np.zeros(2))
    found = fuse([one, other], 3)
    assert found.numbers.tolist() == [7, 5, 6]
    assert found.scores == pytest.approx([1 / 63 + 1 / 61, 1 / 61, 1 / 62])


def test_the_cache_follows_the_output(random_output: Any) -> None:
    """Pieces of parts that are the same are kept, others are made or removed; a missing or half-made piece is made again."""
    folder, vectors, _ = random_output
    output = open_output(str(folder))
    cache = cache_folder(output.uri)
    assert cache.parent == folder.parent
    open_corpus(output, cache)
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    change_part(folder, "embeddings/part-00001", lambda table: table.slice(50))
    output = open_output(str(folder))
    corpus = open_corpus(output, cache)
    after = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert corpus.count == 650
    assert corpus.vectors(np.array([450]))[0].tolist() == vectors[500].tolist()
    assert len(before.keys() & after.keys()) == len(before) // 2 == len(after) // 2
    assert all(after[name] == before[name] for name in before.keys() & after.keys())
    gone = sorted(cache.iterdir())[0]
    gone.unlink()
    assert open_corpus(output, cache).count == 650
    assert gone.exists()
    report = verify_output(str(folder))
    assert "stray" not in report.counts


def test_a_changed_part_is_not_cached(random_output: Any) -> None:
    """A part whose bytes are not those that run.json names is an error, not a wrong answer."""
    folder = random_output[0]
    part = find_part(folder, EMBEDDINGS)
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    cache = folder.parent / "cache"
    with pytest.raises(StoreError, match="arkbeam verify"):
        open_corpus(open_output(str(folder)), cache)
    assert not list(cache.glob("*.tmp"))


@pytest.mark.parametrize(
    ("condition", "count"),
    [("third = 1", 1), ("third = 1 -- comment", 1), ("row < 2 AND list_contains([1, 2], third + 1)", 2), ("false", 0), ("norm IS NULL", 0)],
)  # fmt: skip
def test_conditions(condition: str, count: int) -> None:
    """A condition is SQL over the columns of the output."""
    rows = embeddings_table(np.eye(3), third=[0, 1, 2])
    assert select_rows(rows, condition).sum() == count


@pytest.mark.parametrize(
    "condition",
    [
        "no_such_column = 1",
        "third =",
        "1 = 1) UNION ALL SELECT 'x' WHERE (1 = 1",
        "1 = 1); COPY output TO '{target}'; SELECT (1 = 1",
        "1 = 1); ATTACH '{target}'; SELECT (1 = 1",
        "EXISTS (SELECT * FROM '{secret}')",
        "EXISTS (SELECT * FROM read_text('{secret}'))",
        "EXISTS (SELECT * FROM read_csv('http://127.0.0.1:9/x.csv'))",
        "EXISTS (SELECT * FROM glob('{folder}/*'))",
        "EXISTS (SELECT * FROM rows)",
        "EXISTS (SELECT * FROM query('COPY output TO ''{target}'''))",
        "1 = 1); SET enable_external_access = true; SELECT (1 = 1",
    ],
)
def test_conditions_reach_nothing_else(tmp_path: Path, condition: str) -> None:
    """A condition can't read or write files, reach the network, see Python's variables, or change the settings."""
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    rows = embeddings_table(np.eye(3), third=[0, 1, 2])
    text = condition.format(target=tmp_path / "target", secret=secret, folder=tmp_path)
    with pytest.raises(ConfigError, match="--where"):
        select_rows(rows, text)
    assert list(tmp_path.iterdir()) == [secret]


def test_a_number_that_was_kept_as_text() -> None:
    """A comparison of a text with a number, as for columns of CSV files, is an error that says how to write it."""
    rows = embeddings_table(np.eye(2), price=["9.5", "30"])
    with pytest.raises(ConfigError, match=r"CAST\(price AS DOUBLE\)"):
        select_rows(rows, "price < 20")
    assert select_rows(rows, "CAST(price AS DOUBLE) < 20").tolist() == [True, False]


def service_of(output: Path, url: str, *settings: str) -> Service:
    """Return the service of an output's config, at another URL."""
    note = json.loads((output / "run.json").read_bytes())
    return _make_service(note, [f"api.base_url={url}", *settings])


def ids(found: Found) -> list[str]:
    """Return the ids that were found."""
    return [row["id"] for row in found.rows]


@pytest.mark.parametrize("mode", list(Mode))
def test_words_find_their_own_row(output: Path, emulator: Emulator, mode: Mode) -> None:
    """The text of a row finds the row, by each mode; the query is bought once for all modes, and costs nothing again."""
    searcher, service = Searcher(str(output)), service_of(output, emulator.url)
    found = searcher.ask(Query(TEXTS[9]), service, SAME, mode=mode, count=3)
    assert ids(found)[0] == "id-09"
    assert found.rows[0]["tags"] == TEXTS[9].split()
    assert (found.bill.requests, found.bill.known, emulator.stats["paid"]) == (1, 0, 1)
    assert found.bill.tokens == emulator.stats["tokens"]["total"]
    assert found.bill.cost_cny > 0
    for again in Mode:
        found = Searcher(str(output)).ask(Query(TEXTS[9]), service, SAME, mode=again, count=3, where="price < 2")
        assert (found.bill.requests, found.bill.cost_cny, found.bill.known) == (0, 0, 1)
        assert set(ids(found)) <= {f"id-{n:02d}" for n in range(8)}
    assert emulator.stats["paid"] == 1
    assert verify_output(str(output)).is_sound


def test_a_row_finds_its_neighbours(output: Path) -> None:
    """A row finds others, not itself, and nothing is sent, not even if its id is repeated."""
    searcher = Searcher(str(output))
    dense, sparse = (searcher.like("id-09", mode=mode, count=30) for mode in (Mode.DENSE, Mode.SPARSE))
    assert (len(dense.rows), dense.searched, "id-09" in ids(dense) + ids(sparse)) == (23, 23, False)
    shared = set(TEXTS[9].split()) & set(TEXTS[int(ids(sparse)[0][3:])].split())
    assert len(shared) == 2
    with pytest.raises(ConfigError, match="no row has the id 'nobody'"):
        searcher.like("nobody", mode=Mode.DENSE, count=1)


def test_an_output_of_version_0_1_0(tmp_path: Path) -> None:
    """An output of an earlier version, with vectors of a fixed length and unsigned integers, can be searched."""
    old = Path(__file__).parent.parent / "data" / "version-0.1.0" / "out"
    searcher = Searcher(str(old), str(tmp_path))
    first = searcher.rows["id"][0].as_py()
    found = searcher.like(first, mode=Mode.DENSE, count=20, where="prompt_tokens > 0")
    assert (len(found.rows), first in ids(found)) == (10, False)


def test_an_image_is_a_query(place: Place, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image, by a relative path, finds the row of the same image; it has no sparse vector."""
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{number}.png")
    place.write_rows([{"id": str(n), "image": f"{n}.png"} for n in range(3)] + [{"id": "text", "text": "a"}])
    place.run({"model.sparse": True})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "query.png").write_bytes((tmp_path / "1.png").read_bytes())
    monkeypatch.chdir(tmp_path / "elsewhere")
    searcher, service = Searcher(str(place.output)), service_of(place.output, emulator.url)
    found = searcher.ask(Query(image="query.png"), service, SAME, mode=Mode.DENSE, count=1)
    assert (ids(found), found.rows[0]["score"] > 0.99) == (["1"], True)
    with pytest.raises(ConfigError, match="an image has no sparse vector"):
        searcher.ask(Query(image="query.png"), service, SAME, mode=Mode.BOTH, count=1)
    with pytest.raises(ConfigError, match="media_missing"):
        searcher.ask(Query(image="missing.png"), service, SAME, mode=Mode.DENSE, count=1)


def test_a_real_service_with_a_key(place: Place, real_service: RealService, monkeypatch: pytest.MonkeyPatch) -> None:
    """The query goes to the service of the config with the key of its variable, and with the instructions that match."""
    monkeypatch.setenv("MY_KEY", "secret-key")
    corpus = "Instruction:Compress the text into one word.\nQuery:"
    place.url, settings = real_service.url, {"api.api_key_env": "MY_KEY", "model.instructions": corpus}
    place.write_texts(3)
    place.run(settings)
    searcher, service = Searcher(str(place.output)), service_of(place.output, real_service.url)
    found = searcher.ask(Query("row number 2"), service, SAME, mode=Mode.DENSE, count=1)
    sent = real_service.requests[-1]
    assert sent["instructions"] == found.instructions == f"Target_modality: text.\nInstruction:{DEFAULT_TASK}\nQuery:"
    assert (sent["model"], sent["dimensions"], sent["input"]) == (
        service.model.name,
        1024,
        [{"type": "text", "text": "row number 2"}],
    )
    assert real_service.authorizations == {"Bearer secret-key"}
    assert "secret-key" not in str(found)
    monkeypatch.delenv("MY_KEY")
    assert searcher.ask(Query("row number 2"), service, SAME, mode=Mode.DENSE, count=1).bill.requests == 0
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        searcher.ask(Query("other"), service, SAME, mode=Mode.DENSE, count=1)


@pytest.mark.parametrize(
    ("columns", "tokens", "wanted"),
    [
        ({}, 0, "text"),
        ({}, 9, None),
        ({"image": ["a"]}, 9, "image"),
        ({"text": ["t"], "image": ["a", "b"]}, 9, "text/image/text and image"),
        ({"text": ["t"], "input": "i"}, 9, None),
    ],
)
def test_what_the_rows_hold(columns: dict[str, Any], tokens: int, wanted: str | None) -> None:
    """Rows without image tokens are texts; otherwise the mapped columns say what the rows may hold."""
    assert name_contents(columns, has_media=tokens > 0) == wanted
    for scenario in ("corpus", "sts"):
        config = {"model": {"instructions": {"scenario": scenario}}, "manifest": {"columns": columns}}
        said = search_arguments({"config": config, "all_runs": {"tokens": {"image": tokens}}})
        assert (said != "") == (wanted is None and scenario == "corpus")


def test_other_models_and_services(output: Path, make_emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another model, another kind of service, or a rejected query is an error that says so; so are other dimensions."""
    emulator = make_emulator(poison="poison")
    note = json.loads((output / "run.json").read_bytes())
    monkeypatch.setenv("ARK_API_KEY", "key")
    (output / "run.json").write_text(json.dumps(note | {"service": "ark"}))
    with pytest.raises(QueryFailed, match="wrong_service"):
        Searcher(str(output)).ask(Query("x"), service_of(output, emulator.url), SAME, mode=Mode.DENSE, count=1)
    (output / "run.json").write_text(json.dumps(note))
    service = service_of(output, emulator.url)
    with pytest.raises(QueryFailed, match=r"SensitiveContentDetected"):
        Searcher(str(output)).ask(Query("poison"), service, SAME, mode=Mode.DENSE, count=1)
    change_part(
        output,
        EMBEDDINGS,
        lambda table: table.set_column(table.column_names.index("model"), "model", pa.array(["m-1"] * 24)),
    )
    with pytest.raises(QueryFailed, match="this output are of m-1, but the service answers with another model"):
        Searcher(str(output)).ask(Query("x"), service, SAME, mode=Mode.DENSE, count=1)
    for key, value in (("name", "doubao-embedding-vision-250615"), ("dimensions", "2048")):
        with pytest.raises(ConfigError, match=f"model.{key}="):
            service_of(output, emulator.url, f"model.{key}={value}")


@pytest.mark.parametrize(
    ("url", "asks"),
    [
        ("https://ark.cn-beijing.volces.com/api/v3", False),
        ("http://127.0.0.1:9/api/v3", False),
        ("http://ark.cn-beijing.volces.com/api/v3", True),
        ("https://volces.com.evil.example/api/v3", True),
        ("https://evil.example/.volces.com", True),
    ],
)
def test_a_key_is_sent_only_where_it_may_go(output: Path, url: str, asks: bool) -> None:
    """An output that came from someone else can't name a server to which the user's key is sent."""
    note = json.loads((output / "run.json").read_bytes())
    note["config"]["api"]["base_url"], note["service"] = url, "ark"
    if asks:
        with pytest.raises(ConfigError, match=r"--set api\.base_url"):
            _make_service(note, [])
    else:
        assert _make_service(note, []).api.base_url == url
    assert _make_service(note, [f"api.base_url={url}"]).api.base_url == url


def test_outputs_that_can_not_be_searched(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output without vectors, without sparse ones, a half one, and a missing package are errors that say what to do."""
    empty = write_output(tmp_path / "empty", {})
    with pytest.raises(ConfigError, match="no vectors"):
        Searcher(empty.uri)
    dense = write_output(tmp_path / "dense", {"embeddings": [embeddings_table(np.eye(1, 4))]})
    with pytest.raises(ConfigError, match="no sparse vectors"):
        Searcher(dense.uri).like("id-0", mode=Mode.SPARSE, count=1)
    (output / "_SUCCESS").unlink()
    with pytest.raises(ConfigError, match="_SUCCESS"):
        Searcher(str(output))
    for name, act in (
        ("usearch.index", lambda: Searcher(dense.uri)),
        ("duckdb", lambda: select_rows(pa.table({"a": [1]}), "true")),
    ):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ConfigError, match=r"pip install 'arkbeam\[search\]'"):
            act()
        monkeypatch.undo()


CORPUS = InstructionOptions("corpus")
TEMPLATE = "Target_modality: {}.\nInstruction:{}\nQuery:"


@pytest.mark.parametrize(
    ("corpus", "wording", "holds", "wanted"),
    [
        (None, SAME, "text", None),
        ("anything", SAME, None, "anything"),
        (InstructionOptions("sts", "text", "do it"), SAME, None, TEMPLATE.format("text", "do it")),
        (CORPUS, SAME, "text", TEMPLATE.format("text", DEFAULT_TASK)),
        (CORPUS, Wording(task="find it", target_modality="image"), None, TEMPLATE.format("image", "find it")),
        ("Instruction:Compress the text and image into one word.\nQuery:", SAME, None, TEMPLATE.format("text and image", DEFAULT_TASK)),
        ("anything", Wording(text="exactly"), "text", "exactly"),
    ],
)  # fmt: skip
def test_instructions_match_those_of_the_rows(
    corpus: Any, wording: Wording, holds: str | None, wanted: str | None
) -> None:
    """A query gets the vendor's template for queries if the rows have that for a corpus, else the instructions of the rows."""
    assert choose_instructions(corpus, wording, own_column=False, holds=holds) == wanted


@pytest.mark.parametrize(
    ("corpus", "wording", "own_column", "words"),
    [
        (CORPUS, SAME, False, "--target-modality"),
        (None, SAME, True, "--instructions"),
        (None, Wording(task="x"), False, "have no instructions"),
        ("anything", Wording(target_modality="text"), False, "have other instructions"),
        (InstructionOptions("query", "text", "x"), SAME, False, "embedded as queries"),
    ],
)
def test_instructions_without_a_match(corpus: Any, wording: Wording, own_column: bool, words: str) -> None:
    """If no instructions match those of the rows, the error says what to do."""
    with pytest.raises(ConfigError, match=words):
        choose_instructions(corpus, wording, own_column=own_column, holds=None)


def test_measures() -> None:
    """Recall and nDCG of a ranking are those of their definitions; a repeated id counts once."""
    assert judge(["a", "b", "c"], {"a": 1.0, "c": 1.0}, 3) == (1.0, pytest.approx((1 + 1 / 2) / (1 + 1 / np.log2(3))))
    assert judge(["x", "a", "a"], {"a": 2.0, "b": 1.0}, 3) == (
        0.5,
        pytest.approx(2 / np.log2(3) / (2 + 1 / np.log2(3))),
    )
    assert judge([], {"a": 1.0}, 3) == (0.0, 0.0)


def test_evaluation(output: Path, emulator: Emulator, tmp_path: Path) -> None:
    """Queries that are the texts of rows have these rows first, by each mode; ids that the output lacks are counted."""
    path = tmp_path / "queries.jsonl"
    lines = [{"query": TEXTS[n], "relevant": [f"id-{n:02d}"]} for n in range(5)] + [
        {"query": TEXTS[5], "relevant": {"none": 2}}
    ]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    result = Searcher(str(output)).evaluate(read_judged(str(path)), service_of(output, emulator.url), SAME, 1)
    assert {mode: (one.recall, one.ndcg) for mode, one in result.quality.items()} == dict.fromkeys(
        ["dense", "sparse", "both"], (pytest.approx(5 / 6), pytest.approx(5 / 6))
    )
    assert (result.queries, result.missing, result.bill.requests) == (6, 1, 6)


@pytest.mark.parametrize(
    ("line", "words"),
    [("{", "line 1: not JSON"), ("[]", "must be an object"), ('{"query": "a"}', "`relevant`"), ('{"query": "a", "image": "b", "relevant": ["x"]}', "either"),
     ('{"query": " ", "relevant": ["x"]}', "blank"), ('{"query": "a", "relevant": []}', "not empty"), ('{"query": "a", "relevant": {"x": 0}}', "above 0"),
     ('{"query": "a", "relevant": [1]}', "list of ids"), ("", "no queries")],
)  # fmt: skip
def test_wrong_evaluations(tmp_path: Path, line: str, words: str) -> None:
    """A line that is no query with relevant ids is an error that names the line."""
    path = tmp_path / "queries.jsonl"
    path.write_text(line)
    with pytest.raises(ConfigError, match=words):
        read_judged(str(path))


def test_an_output_on_s3(finished: Path, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of an output in a bucket is in the user's folder for caches; nothing is written to the bucket."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    names = {f"out/{path.relative_to(finished)}" for path in finished.rglob("*") if path.is_file()}
    for name in names:
        s3.put(name, (finished / name.removeprefix("out/")).read_bytes())
    assert len(Searcher(s3.uri("out")).like("id-00", mode=Mode.BOTH, count=3).rows) == 3
    assert len(list((tmp_path / "caches").rglob("*.arrow"))) == 2
    assert {one["Key"] for one in s3.client.list_objects_v2(Bucket="pictures")["Contents"]} == names


def test_command(output: Path, call: Callable[..., Any]) -> None:
    """The command starts the emulator for an output of the emulator, prints the rows and the cost, or all of it as JSON."""
    ended = call("search", str(output), TEXTS[4], "-k", "2")
    assert ended.code == 0, ended.err
    assert "id-04" in ended.out
    assert "(emulator: not billed); 24 rows searched in" in ended.err
    ended = call("search", str(output), TEXTS[4], "-k", "2", "--json")
    document = json.loads(ended.out)
    assert (document["rows"][0]["id"], document["bill"]["known"]) == ("id-04", 1)
    for arguments, words in (
        ([], "say one of"),
        (["x", "--like", "y"], "say one of"),
        (["x", "--mode", "fast"], "--mode fast"),
        (["--eval", "f", "--where", "true"], "--where"),
        (["--like", "id-00", "--where", "nope"], "nope"),
    ):
        ended = call("search", str(output), *arguments)
        assert (ended.code, words in ended.err) == (2, True)
