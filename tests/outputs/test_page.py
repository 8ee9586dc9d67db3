"""The page of a report: what it shows, that hostile values stay text, that it has a bound, and what Chromium makes of it."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arkbeam.base.errors import StoreError
from arkbeam.outputs import facts, page, sampling
from arkbeam.outputs.charts import Layer, draw_lines, draw_steps

from scripts.chromium import Screen, find_chromium, look
from tests.outputs.samples import embeddings_table, failures_table, usage_table, write_output

HOSTILE = (
    "</title></script><script>window.ran=1</script>",
    "\"><img src=x onerror=window.ran=1>'",
    "javascript:window.ran=1 {{ 7*7 }} {% raw %} ${7*7}",
    "\u202e\u2066gnp.exe\u0000\u001b[31m\ud800",
    "<svg onload=window.ran=1><style>*{display:none}</style><!--",
    "&lt;b&gt; ]]> 中文 👩‍🔬 " + "w" * 200_000,
)
SECRET = "s3cr3t-of-the-row"
VOID = {"meta", "img", "br", "circle", "path", "use", "rect"}


class Elements(HTMLParser):
    """Collects the elements of a page with their attributes, and checks that they are nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.found.append((tag, dict(attrs)))
        if tag not in VOID or tag == "circle":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an empty element."""
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Check the nesting."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.text.append(data)


def vectors(rows: int, dimensions: int = 8, seed: int = 0) -> np.ndarray:
    """Return random vectors."""
    return np.random.default_rng(seed).normal(size=(rows, dimensions)).astype(np.float32)


def make_hostile(folder: Path) -> Any:
    """Write an output in which every text that a person may have written is hostile."""
    texts = [text.encode("utf-8", "replace").decode() for text in HOSTILE]
    rows = 4 * len(texts)
    table = embeddings_table(
        vectors(rows),
        id=texts * 4,
        manifest=[f"/in/{text}" for text in texts * 4],
        **{texts[0]: texts * 4, texts[1][:30]: [list(texts)] * rows},
    )
    failed = failures_table(
        texts, id=texts, manifest=texts, message=[f"{text} https://h/x?sig={SECRET}" for text in texts]
    )
    note = {"level": "warning", "code": "x", "message": texts[0], "details": {}}
    config = {
        "model": {"name": texts[1]},
        texts[0]: texts,
        "store": {"uri": f"https://u:{SECRET}@host/x?token={SECRET}"},
    }
    stopped = {"kind": "service", "code": texts[0], "message": texts[1]}
    tables = {"embeddings": [table], "failures": [failed], "usage": [usage_table(range(70), [40.0] * 70)]}
    return write_output(folder / "<b onclick='x'>out", tables, notes=[note], config=config, stopped=stopped)


def check_harmless(text: str) -> Elements:
    """Check that a page has no element, attribute or address that runs or asks for anything."""
    elements = Elements(text)
    assert elements.open == []
    names = {name for name, _ in elements.found}
    assert not names & {
        "script",
        "iframe",
        "object",
        "embed",
        "link",
        "form",
        "base",
        "foreignobject",
        "image",
        "audio",
    }
    for name, attributes in elements.found:
        assert not [key for key in attributes if key.startswith("on")], (name, attributes)
        for key in ("src", "href", "xlink:href"):
            value = attributes.get(key)
            assert value is None or value.startswith(("#", "data:image/")), (name, value)
    policy = next(
        one["content"] or "" for _, one in elements.found if one.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    assert "script" not in policy
    assert not re.search(r"url\((?!#)|@import", text)
    return elements


def test_hostile_values_stay_text(tmp_path: Path) -> None:
    """Markup, templates, marks of direction, NUL and huge strings in every field become short harmless text; secrets are masked."""
    output = make_hostile(tmp_path)
    text = page.make_page(output).decode("utf-8")
    elements = check_harmless(text)
    shown = "".join(elements.text)
    assert "window.ran=1" in shown
    assert "{{ 7*7 }}" in shown
    assert "49" not in re.findall(r"javascript:window.ran=1 (\S+)", shown)
    assert "中文 👩‍🔬" in shown
    assert SECRET not in text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", text)
    assert len(text) < 500_000


def test_page_shows_what_the_output_has(tmp_path: Path) -> None:
    """Counts, codes with advice, near duplicates, latencies, cost and folders are those of the files."""
    same = np.repeat(vectors(1, 64), 3, axis=0) + np.array([[0], [1e-3], [2e-3]], np.float32)
    sparse = [{"indices": [at, at + 7], "values": [0.5, 0.25]} if at % 2 else None for at in range(303)]
    table = embeddings_table(np.concatenate([same, vectors(300, 64, seed=1)]), sparse=sparse)
    tables = {
        "embeddings": [table],
        "failures": [failures_table(["media_missing"] * 3 + ["bad_json"])],
        "usage": [usage_table(range(150), [120.0] * 150)],
    }
    minutes = [
        {"minute": at, "minutes": 1, "seconds": 60.0, "requests": 75, "refused": 5, "tokens": 900} for at in (0, 1)
    ]
    quota = {"rpm": 600, "tpm": 1_000, "utilisation": 0.5, "binding": "tpm", "minutes": minutes}
    output = write_output(tmp_path / "out", tables, quota=quota, refused=10, refused_share=0.06)
    text = page.make_page(output).decode()
    shown = re.sub(r"\s+", " ", " ".join(check_harmless(text).text))
    assert "307 = 303 + 4" in shown
    assert "put the file in place" in shown
    assert "near duplicates 1.0%" in shown
    assert "all requests 150 120 120 120 120 120" in shown
    assert "10 6.00% of the requests" in shown
    for title in (
        "Requests a minute",
        "Tokens a minute",
        "Latency",
        "In flight",
        "Replies and retries",
        "Norms",
        "Sparse vectors",
    ):
        assert f"<h3>{title}</h3>" in text
    assert text.count("<circle") == 303
    assert facts.digest_files(output.note) in text


def test_page_of_an_output_without_vectors(tmp_path: Path) -> None:
    """An output whose rows all failed, or that has no row at all, has a page too."""
    tables = {"embeddings": [embeddings_table(vectors(0))], "failures": [failures_table(["no_input"])], "usage": []}
    output = write_output(tmp_path / "out", tables)
    assert "No vector was published" in page.make_page(output).decode()
    empty = write_output(tmp_path / "empty", {"embeddings": [], "failures": [], "usage": []})
    text = page.make_page(empty).decode()
    assert "No row failed" in text
    check_harmless(text)


def test_page_of_a_part_of_another_size(tmp_path: Path) -> None:
    """A part that is not the file that `run.json` names is an error that says what to do."""
    output = write_output(tmp_path / "out", {"embeddings": [embeddings_table(vectors(3))]})
    with (tmp_path / "out" / output.files[0].path).open("ab") as file:
        file.write(b" ")
    with pytest.raises(StoreError, match=r"not the file that run\.json names.*arkbeam verify"):
        page.make_page(output)


def test_page_is_the_same_each_time(tmp_path: Path) -> None:
    """The same output gives the same bytes, and charts of one page share no id."""
    tables = {
        "embeddings": [embeddings_table(vectors(40))],
        "failures": [],
        "usage": [usage_table(range(9), [5.0] * 9)],
    }
    output = write_output(tmp_path / "out", tables)
    first = page.make_page(output)
    assert first == page.make_page(output)
    ids = re.findall(rb' id="([^"]+)"', first)
    assert len(ids) == len(set(ids)) > 10


def test_sample_is_bounded_and_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large output, a bounded number of rows and row groups is read, from all over it; rows keep their own vectors."""
    monkeypatch.setattr(sampling, "GROUPS_MAX", 6)
    parts = []
    for number in range(4):
        values = vectors(1_000, seed=number)
        rows = list(range(number * 1_000, number * 1_000 + 1_000))
        values[:, 0] = rows
        parts.append(embeddings_table(values, row=rows, fingerprint=[at.to_bytes(16) for at in rows]))
    output = write_output(tmp_path / "out", {"embeddings": parts, "failures": [], "usage": []})
    sample = sampling.read_sample(output, 300)
    numbers = np.array(sample.rows["row"].to_pylist())
    assert np.array_equal(sample.vectors[:, 0], numbers)
    assert 250 <= len(numbers) <= 300
    assert set(numbers // 1_000) == {0, 1, 2, 3}
    groups = {(at // 1_000, at % 1_000 // 256) for at in numbers.tolist()}
    assert len(groups) <= 6
    assert sampling.read_sample(output, 10_000).rows.num_rows <= 6 * 256


def test_rows_of_one_request_count_once(tmp_path: Path) -> None:
    """Rows with the same fingerprint are one row of the sample; bytes in kept columns are not read."""
    table = embeddings_table(vectors(6), fingerprint=[b"a" * 16, b"b" * 16] * 3, blob=[b"x"] * 6, note=["n"] * 6)
    output = write_output(tmp_path / "out", {"embeddings": [table], "failures": [], "usage": []})
    sample = sampling.read_sample(output)
    assert sample.rows["id"].to_pylist() == ["id-0", "id-1"]
    assert sample.kept == ("note",)


def test_charts_have_only_colours_of_the_style() -> None:
    """A chart follows light and dark: each colour in it is a variable, and it has neither a size, a font nor a date."""
    svg = draw_steps("a", [0, 1, 2], [Layer("x", [1, 2]), Layer("y", [3, 4])], "x", "y", ("limit", 5))
    lines = draw_lines(
        "b", [0, 1, 2], [Layer("x", [1.0, float("nan")]), Layer("y", [1, 2]), Layer("z", [2, 3])], "x", "y"
    )
    for text in (svg, lines):
        assert not re.search(r"#[0-9a-f]{6}\b", text)
        assert "var(--c1)" in text
        assert "var(--ink)" in text
        assert not re.search(r"DejaVu|<metadata|<svg[^>]*width=", text)
    assert "var(--limit)" in svg


def test_config_is_bounded_and_masked() -> None:
    """A config of any size is shown in a bounded form, without secrets."""
    note = {"config": {"a": ["x" * 10_000] * 500, "uri": "https://user:hunter2-hunter2@host/"}}
    text = facts.describe_config(note)
    assert len(text) <= facts.CONFIG_CHARS_MAX + 2
    assert "hunter2" not in facts.describe_config({"config": {"uri": note["config"]["uri"]}})


def test_chromium_opens_the_page(tmp_path: Path) -> None:
    """Chromium shows a page of hostile values, on a desk and on a phone, light and dark, without error, request or script."""
    program = find_chromium()
    if program is None:
        pytest.skip("chromium is not installed (Debian's package chromium)")
    output = make_hostile(tmp_path)
    path = Path(output.uri) / "report.html"
    path.write_bytes(page.make_page(output))
    ask = """({
        ran: window.ran ?? null, scripts: document.scripts.length, wide: document.documentElement.scrollWidth - innerWidth,
        ink: getComputedStyle(document.querySelector("figure svg text")).fill, paper: getComputedStyle(document.body).backgroundColor,
        stops: [...document.querySelectorAll("a, summary, [tabindex]")].filter(one => one.tabIndex === 0).length,
        nameless: [...document.querySelectorAll("svg[role=img], [role=region], [role=img]")].filter(
            one => !one.getAttribute("aria-label")).length,
    })"""
    screens = [Screen("desk", 1280, 900), Screen("dark", 1280, 900, dark=True), Screen("phone", 360, 740)]
    seen = look(program, path, screens, ask)
    assert seen.errors == []
    assert seen.requests == []
    assert [one["ran"] for one in seen.values] == [None] * 3
    assert [one["scripts"] for one in seen.values] == [0] * 3
    assert [one["wide"] for one in seen.values] == [0] * 3
    assert [one["nameless"] for one in seen.values] == [0] * 3
    assert all(one["stops"] > 8 for one in seen.values)
    light, dark = seen.values[:2]
    assert (light["ink"], light["paper"]) == ("rgb(29, 33, 41)", "rgb(255, 255, 255)")
    assert (dark["ink"], dark["paper"]) == ("rgb(230, 233, 239)", "rgb(20, 23, 28)")
    assert len({len(picture) for picture in seen.pictures}) == 3
