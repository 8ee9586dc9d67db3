"""`init`, `check` and `schema`: from files that somebody else made to a config that runs as it is."""

import gzip
import io
import json
import os
import shlex
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from arkbeam.app.config import list_keys, load_config
from arkbeam.app.folder import Contents, scan
from arkbeam.app.guess import describe_columns, guess_columns
from arkbeam.app.init import Initialised, initialise
from arkbeam.app.job import run_job
from arkbeam.app.prepare import prepare_job
from arkbeam.app.program import program
from arkbeam.app.schema import config_schema
from arkbeam.base.errors import ConfigError, ManifestError
from PIL import Image

TEXTS = [f"a teapot with the number {number}" for number in range(30)]
KEY = "0f3c9f6e-1111-4222-8333-444455556666"


def picture(number: int, kind: str = "PNG") -> bytes:
    """Return a small picture; each number gives another one."""
    data = io.BytesIO()
    Image.new("RGB", (32, 32), (number % 256, number * 7 % 256, 90)).save(data, kind)
    return data.getvalue()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write_csv(path: Path, lines: list[str], encoding: str = "utf-8") -> None:
    """Write the lines of a text file."""
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))


def write_files(here: Path, name: str) -> str:
    """Write a manifest of a kind by name; return its path."""
    match name:
        case "a.csv":
            lines = [
                f'A-{n},Pot {n},"{text}, fine",{n}.5,https://e.example/{n}.jpg?w=3' for n, text in enumerate(TEXTS)
            ]
            write_csv(here / name, ["sku,name,description,price,photo", *lines])
        case "b.csv":  # as spreadsheets write it in China
            write_csv(here / name, ["编号;标题", *(f"{n};茶壶很好看，第{n}个" for n in range(30))], "gb18030")
        case "c.csv":
            write_csv(here / name, [f"{n},{text},https://e.example/{n}.jpg" for n, text in enumerate(TEXTS)])
        case "d.tsv.gz":
            rows = [f"{n}\t{text}\n" for n, text in enumerate(TEXTS)]
            (here / name).write_bytes(gzip.compress("".join(["id\ttext\n", *rows]).encode()))
        case "e.parquet":
            images = [{"bytes": picture(n), "path": f"{n}.png"} for n in range(30)]
            pq.write_table(pa.table({"image": images, "caption": TEXTS, "label": [1] * 30}), here / name)
        case "f.parquet":
            pq.write_table(pa.table({"picture": [picture(n) for n in range(30)], "n": list(range(30))}), here / name)
        case "g.jsonl":
            bodies = [{"input": [{"type": "text", "text": text}]} for text in TEXTS]
            write_csv(
                here / name,
                [
                    json.dumps({"custom_id": f"r-{n}", "method": "POST", "url": "/api", "body": body})
                    for n, body in enumerate(bodies)
                ],
            )
        case "h.txt":
            write_csv(here / name, [f"{text}, and a comma" for text in TEXTS])
        case "i":  # no ending
            (here / name).write_text(json.dumps([{"uid": f"u{n}", "text": text} for n, text in enumerate(TEXTS)]))
    return name


FOUND: dict[str, dict[str, Any]] = {
    "a.csv": {"id": "sku", "text": ["name", "description"], "image": "photo"},
    "b.csv": {"id": "编号", "text": "标题"},
    "c.csv": {"text": "column_2", "image": "column_3"},
    "d.tsv.gz": {"id": "id", "text": "text"},
    "e.parquet": {"text": "caption", "image": "image"},
    "f.parquet": {"image": "picture"},
    "g.jsonl": {},
    "h.txt": {"text": "line"},
    "i": {"id": "uid", "text": "text"},
}


@pytest.mark.parametrize("name", FOUND)
def test_a_manifest(here: Path, name: str) -> None:
    """The columns and the dialect of a manifest are found, and a run with the config can send all rows."""
    done = initialise([write_files(here, name)], "c.yaml")
    written = yaml.safe_load(Path("c.yaml").read_text("utf-8"))
    assert written["manifest"].get("columns", {}) == FOUND[name]
    assert not {"method", "url"} & {*written["manifest"]["keep"]}  # of lines for the batch service
    assert (done.requests, done.failures) == (30, {})
    config = load_config("c.yaml", ["api.base_url=emulator"])
    assert prepare_job(config).shards


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with pictures, texts, names that are hard to write, and files that are none of these."""
    folder = tmp_path / "my pictures"
    files: dict[str | bytes, bytes] = {
        "a.png": picture(1),
        "no ending": picture(2, "JPEG"),
        "liar.txt": picture(3),
        "not one.jpg": b"text",
        "a\nb.png": picture(4),
        "100%41#?.png": picture(5),
        "s3:bucket.jpg": picture(6, "JPEG"),
        "瓶/data:image.gif": picture(7, "GIF"),
        b"\xff.png": picture(8),
        ".hidden/x.png": picture(9),
        "notes.md": "# 茶壶\n".encode(),
        "gbk.txt": "茶壶很好看，今天天气不错".encode("gb18030"),
        "empty.txt": b"",
        "doc.pdf": b"%PDF-1.4",
        "settings.json": b'{\n  "of": "another tool"\n}\n',
    }
    for name, data in files.items():
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "outside.txt").symlink_to("/etc/hostname")
    (folder / "inside.png").symlink_to("a.png")
    (folder / "around").symlink_to(".")
    os.mkfifo(folder / "pipe.png")
    return folder


def test_a_folder_of_pictures(here: Path, pictures: Path, make_emulator: Any) -> None:
    """A folder becomes a manifest by content; every row of it is published, with the path as id; what a run wrote is no row."""
    done = initialise([str(pictures)])
    assert (done.config, done.manifest) == ("my-pictures.yaml", "my-pictures.jsonl")
    assert done.contents is not None
    assert done.contents.kinds == {"image": 8, "text": 2}
    url = make_emulator().url
    config = load_config(done.config, [f"api.base_url={url}", "output.uri=out/my"])
    note = run_job(prepare_job(config))
    assert (note["published"], note["failed"]) == (10, 0)
    ids = set(pq.read_table("out/my/embeddings")["id"].to_pylist())
    wanted = {"a.png", "no ending", "liar.txt", "a\nb.png", "100%41#?.png", "s3:bucket.jpg", "瓶/data:image.gif"}
    assert ids == wanted | {"inside.png", "notes.md", "gbk.txt"}
    Path("out/my").rename(pictures / "out")
    Path("vectors").rename(pictures / "vectors")
    again = Contents()
    assert len(list(scan(str(pictures), again))) == 10
    assert again.kinds == done.contents.kinds


def test_a_folder_is_bounded(here: Path, pictures: Path) -> None:
    """Of a folder with more files than `files_max`, the first ones are taken, and it is said."""
    contents = Contents()
    assert len(list(scan(str(pictures), contents, files_max=3))) <= 3
    assert (contents.files, contents.cut) == (3, True)
    done = initialise([str(pictures)], files_max=5)
    assert done.contents is not None
    assert done.contents.cut


def test_unusual_images_are_looked_at(here: Path, tmp_path: Path) -> None:
    """Images that need conversion are found behind many that do not; the config converts them, and names those that stay bad."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):
        (folder / f"a{number:02d}.jpg").write_bytes(picture(number, "JPEG"))
    Image.new("RGB", (2_000, 1_700)).save(folder / "large.bmp")
    (folder / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(80))
    done = initialise([str(folder)])
    assert done.contents is not None
    assert [Path(path).name for path in done.contents.unusual] == ["large.bmp", "phone.jpg"]
    assert yaml.safe_load(Path(done.config).read_text("utf-8"))["media"]["fit"]["transcode"] is True
    assert [doubt for doubt in done.doubts if "phone.jpg" in doubt]


def test_a_folder_of_manifests(here: Path) -> None:
    """If a folder has manifests, they are used, and no manifest is made of its files."""
    (here / "in").mkdir()
    for name in ("a", "b"):
        write_csv(here / "in" / f"{name}.csv", ["id,text", *(f"{name}{n},{text}" for n, text in enumerate(TEXTS))])
    (here / "in" / "logo.png").write_bytes(picture(1))
    (here / "in" / "old.map.parquet").write_bytes(b"a map of an earlier output" * 999)
    done = initialise(["in"])
    assert (done.manifest, done.looked.uris, done.doubts) == (None, ("in/a.csv", "in/b.csv"), ())
    assert not Path("in.jsonl").exists()


def test_different_manifests_of_a_folder(here: Path, call: Callable[..., Any]) -> None:
    """It is said which manifests of a folder are used, that other files are not, and that their columns differ."""
    (here / "in").mkdir()
    for name, columns in (("a", "id,text"), ("b", "sku,title")):
        write_csv(here / "in" / f"{name}.csv", [columns, *(f"{name}{n},{text}" for n, text in enumerate(TEXTS))])
    (here / "in" / "logo.png").write_bytes(picture(1))
    lines = call("init", "in").out.splitlines()
    assert "manifests that are used: in/a.csv, in/b.csv" in lines
    assert [line for line in lines if line.startswith("all else is not used")]
    assert [line for line in lines if line.startswith("please check: these manifests have different columns")]


@pytest.mark.parametrize(
    ("lines", "words"),
    [(["a,b", "1,2", "1,3"], "'a' (number), 'b' (number)"), (["a,link", "1,https://e.example/x"], "'link'")],
)
def test_nothing_usable(here: Path, lines: list[str], words: str) -> None:
    """If no column has texts or media, the error names the columns and what they hold; nothing is written."""
    write_csv(here / "n.csv", lines)
    with pytest.raises(ConfigError, match="holds texts, images or videos") as error:
        initialise(["n.csv"])
    assert words in str(error.value)
    assert not Path("n.yaml").exists()


def test_unusable_paths(here: Path) -> None:
    """An empty folder, an empty file, other bytes and a missing file are errors that name them."""
    (here / "empty").mkdir()
    (here / "zero.csv").touch()
    (here / "other.bin").write_bytes(bytes(range(256)) * 9)
    for name, kind in (("empty", ConfigError), ("zero.csv", ManifestError), ("other.bin", ManifestError)):
        with pytest.raises(kind, match=name):
            initialise([name])
    with pytest.raises(ManifestError, match="does not exist"):
        initialise(["none.csv"])
    (here / "empty" / "embeddings").mkdir()
    (here / "empty" / "run.json").touch()
    with pytest.raises(ConfigError, match="empty is an output or a store"):
        initialise(["empty"])
    assert sorted(path.name for path in here.iterdir()) == ["empty", "other.bin", "zero.csv"]


def test_nothing_is_replaced(here: Path) -> None:
    """A config that exists is kept, unless `force` is set."""
    write_files(here, "h.txt")
    (here / "h.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="--force"):
        initialise(["h.txt"])
    assert (here / "h.yaml").read_text() == "mine"
    assert isinstance(initialise(["h.txt"], force=True), Initialised)


def test_hostile_columns(here: Path) -> None:
    """Names and values of columns can't break the YAML of the config; each name is written exactly."""
    names = ['a"b\n# c: d', "{x: 1}", "*y", "on", "text: 'z'", "\u202e", "1"]
    rows = [dict.fromkeys(names, f"{text} {number}\n# x") for number, text in enumerate(TEXTS)]
    write_csv(here / "x.jsonl", [json.dumps(row) for row in rows])
    initialise(["x.jsonl"])
    config = load_config("x.yaml")
    assert set(config.manifest.columns.text) | set(config.manifest.keep) <= set(names)
    assert len(config.manifest.keep) == len(names)


def test_columns_of_the_output_are_not_kept() -> None:
    """A column with the name of one of the output, with bytes or with long texts is not kept."""
    rows = [{"model": "x", "norm": 1, "Dense": "d", "text": TEXTS[0], "long": "x " * 400, "n": 3, "l": [1]}] * 3
    guess = guess_columns(describe_columns(list(rows[0]), rows), 3)
    assert guess.text == ("text",)
    assert set(guess.keep) == {"Dense", "text", "n"}


def test_run_names_init(here: Path, call: Callable[..., Any]) -> None:
    """`run` on a manifest or a folder says which command makes a config of it."""
    write_files(here, "a.csv")
    (here / "f").mkdir()
    for name in ("a.csv", "f"):
        ended = call("run", name)
        assert (ended.code, f"arkbeam init {name}" in ended.err) == (2, True)


def test_printed_commands_can_be_pasted(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that are printed begin with the path of the program if its name is not on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for called, printed in (
        (str(here / ".venv/bin/arkbeam"), ".venv/bin/arkbeam"),
        (str(tmp_path / "my bin" / "arkbeam"), f"'{tmp_path}/my bin/arkbeam'"),
        ("/usr/bin/pytest", "arkbeam"),
    ):
        monkeypatch.setattr("sys.argv", [called, "run"])
        assert program() == printed
    (tmp_path / "arkbeam").touch(0o755)
    monkeypatch.setattr("sys.argv", [str(here / ".venv/bin/arkbeam")])
    assert program() == "arkbeam"


def test_the_printed_search_runs(here: Path, call: Callable[..., Any]) -> None:
    """The command that a run prints for a search runs as it is, also if the config does not say what the rows hold."""
    parts = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + b64encode(picture(1)).decode()}}
    write_csv(here / "lines.jsonl", [json.dumps({"custom_id": "a", "body": {"input": [parts]}})])
    assert call("init", "lines.jsonl").code == 0
    output = "output.uri=out/my trial"
    ended = call("run", "lines.yaml", "--set", "api.base_url=emulator", "--set", output)
    (line,) = [line for line in ended.out.splitlines() if line.startswith("to search it: arkbeam ")]
    found = call(*shlex.split(line)[4:])
    assert (found.code, " a " in found.out) == (0, True), found.err


def test_the_commands(here: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """`init` prints the next commands, `--json` what was found; `check` of the config finds the missing key alone."""
    write_files(here, "b.csv")
    found = json.loads(call("init", "b.csv", "--json").out)
    assert (found["config"], found["rows_that_can_be_sent"], found["guess"]["text"]) == ("b.yaml", 30, ["标题"])
    ended = call("init", "b.csv", "--force")
    assert (ended.code, "arkbeam check b.yaml" in ended.out) == (0, True)
    monkeypatch.delenv("ARK_API_KEY", raising=False)
    ended = call("check", "b.yaml")
    assert (ended.code, ended.out.count("✗"), "✗ key: the environment variable ARK_API_KEY" in ended.out) == (
        2,
        1,
        True,
    )
    monkeypatch.setenv("ARK_API_KEY", KEY)
    ended = call("check", "b.yaml")
    assert (ended.code, KEY in ended.out + ended.err) == (0, False)
    names = [line.split()[1].rstrip(":") for line in ended.out.splitlines()]
    assert names == ["config", "key", "manifest", "store", "output", "rows", "quota", "estimate"]
    assert "about 30 requests" in ended.out
    assert sorted(path.name for path in here.iterdir()) == ["arkbeam.schema.json", "b.csv", "b.yaml"]


def test_check_finds_faults(here: Path, call: Callable[..., Any]) -> None:
    """`check` says what is wrong with the config, the manifest, the storage and the rows, each in its line."""
    ended = call("check", "none.yaml", "--json")
    assert (ended.code, [one["state"] for one in json.loads(ended.out)]) == (2, ["wrong"])
    (here / "two.yaml").write_text("manifest: {uris: x.jsonl}\nquota: {rpm: x, tpm: y}\n")
    ended = call("check", "two.yaml")
    assert {line.split(":")[0] for line in ended.out.splitlines()} >= {"  quota.rpm", "  quota.tpm"}
    write_csv(here / "r.jsonl", [json.dumps({"text": "x"}), json.dumps({"text": "x", "image": "gone.png"}), "{"])
    initialise(["r.jsonl"])
    emulator = ["--set", "api.base_url=emulator", "--json"]
    ended = call("check", "r.yaml", *emulator)
    found = {one["name"]: one for one in json.loads(ended.out)}
    assert (ended.code, found["rows"]["state"]) == (0, "note")
    assert "2 of 3 rows" in found["rows"]["text"]
    (here / "file").touch()
    ended = call("check", "r.yaml", *emulator, "--set", "store.uri=file/store")
    found = {one["name"]: one["state"] for one in json.loads(ended.out)}
    assert (ended.code, found["store"], found["output"]) == (1, "wrong", "ok")
    ended = call("check", "r.yaml", *emulator, "--set", "manifest.uris=['*']", "--set", "output.uri=.")
    assert (ended.code, json.loads(ended.out)[2]["name"]) == (2, "manifest")


def test_probe_buys_one_vector_for_later(here: Path, make_emulator: Any, call: Callable[..., Any]) -> None:
    """`--probe` pays for one request, whose vector later runs use and count; then for another row, then for none."""
    emulator = make_emulator()
    write_csv(here / "p.jsonl", [json.dumps({"id": n, "text": TEXTS[n]}) for n in range(2)])
    initialise(["p.jsonl"])
    arguments = ["p.yaml", "--set", f"api.base_url={emulator.url}"]
    ended = call("check", *arguments, "--probe")
    assert (ended.code, emulator.stats["paid"]) == (0, 1), ended.err
    assert "1,024 dimensions" in ended.out
    note = run_job(prepare_job(load_config(arguments[0], arguments[2:])))
    assert (note["owned"], note["requests_paid"], note["all_runs"]["requests_paid"]) == (1, 1, 2)
    assert (emulator.stats["paid"], emulator.stats["paid_distinct"]) == (2, 2)
    ended = call("check", *arguments, "--probe")
    assert (ended.code, "! probe: nothing was sent" in ended.out, emulator.stats["received"]) == (0, True, 2)
    assert [*Path("vectors").glob("runs/*"), *Path("vectors").glob("quota/*/*")] == []


def test_the_schema_describes_every_key(call: Callable[..., Any]) -> None:
    """The schema has each key of a config with its description, and refuses others."""
    schema = json.loads(call("schema").out)
    assert schema == json.loads(json.dumps(config_schema()))

    def walk(node: dict[str, Any], prefix: str) -> Iterator[str]:
        for name, field in node["properties"].items():
            options = [field, *field.get("anyOf", ())]
            inner = [schema["$defs"][one["$ref"].rpartition("/")[2]] for one in options if "$ref" in one]
            sections = [one for one in inner if "properties" in one]
            if not sections or any(one.get("type") == "string" for one in options):
                assert field["description"], prefix + name
                yield prefix + name
            for section in sections:
                assert section["additionalProperties"] is False
                yield from walk(section, f"{prefix}{name}.")

    assert schema["additionalProperties"] is False
    assert sorted(walk(schema, "")) == sorted(list_keys())


def test_completion(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell's completion is there: typer's own options show it."""
    monkeypatch.setenv("TERM", "dumb")
    assert "--show-completion" in call("--help").out
