"""Settings of a row: instructions, sparse and video sampling, which take precedence over the config."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.ark.instructions import InstructionOptions
from arkbeam.ark.models import VERSIONS, ModelOptions
from arkbeam.ark.wire import ModelSpec
from arkbeam.base.capabilities import Capabilities, EncodingFormat
from arkbeam.base.records import Modality, Part, Request, ServiceKind, VideoSampling
from arkbeam.manifest.options import ColumnMap, ManifestOptions, ReadContext
from arkbeam.manifest.read import ShardChunk, read_shard
from arkbeam.manifest.shards import cut_shards, list_manifests
from arkbeam.manifest.staging import request_from_json

TEXT, IMAGE, VIDEO = Modality.TEXT, Modality.IMAGE, Modality.VIDEO
CAPS = VERSIONS["251215"]
CORPUS = InstructionOptions("corpus")
URLS = {"image": "https://h/i.png", "video": "https://h/v.mp4"}


def asking(capabilities: Capabilities = CAPS, **options: Any) -> ReadContext:
    """A run that asks its model for these options."""
    return ReadContext(
        ServiceKind.ARK, ModelSpec(ModelOptions("doubao-embedding-vision-251215", **options), capabilities)
    )


CONTEXT = asking()
Reader = Callable[..., ShardChunk]


def _read_file(path: Path, context: ReadContext, columns: ColumnMap) -> ShardChunk:
    options = ManifestOptions(str(path), columns=columns)
    (shard,) = cut_shards(list_manifests(options), 2**30)
    (chunk,) = read_shard(shard, options, context)
    return chunk


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    """Read rows given as dicts."""

    def reader(*rows: dict[str, Any], context: ReadContext = CONTEXT, **columns: Any) -> ShardChunk:
        path = tmp_path / "m.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return _read_file(path, context, ColumnMap(**columns))

    return reader


def _requests(chunk: ShardChunk) -> list[Request]:
    """Return the requests of the good rows; there must be no bad row."""
    assert chunk.unreadable.to_pylist() == []
    return [request_from_json(data).request for data in chunk.staged["request"].to_pylist()]


def _failures(chunk: ShardChunk) -> list[tuple[str, str]]:
    """Return code and message of the bad rows; there must be no good row."""
    assert chunk.staged.num_rows == 0
    return [(row["code"], row["message"]) for row in chunk.unreadable.to_pylist()]


def _video(sampling: dict[str, Any]) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": URLS["video"], **sampling}}


# Instructions


def test_corpus_instructions_are_each_rows_own(read: Reader) -> None:
    """The template names the modalities of the row, for all three forms of a row."""
    body = {"input": [{"type": "image_url", "image_url": {"url": URLS["image"]}}]}
    rows = (
        {"text": "a"},
        {"text": ["a", "b"]},
        {"text": "a", "image": URLS["image"]},
        {"input": [_video({}), {"type": "text", "text": "a"}]},
        {"body": body},
        {"image": URLS["image"], "video": URLS["video"]},
    )
    chunk = read(*rows, context=asking(instructions=CORPUS))
    made_of = ("text", "text", "text and image", "text and video", "image", "image and video")
    assert [request.instructions for request in _requests(chunk)] == [
        f"Instruction:Compress the {kind} into one word.\nQuery:" for kind in made_of
    ]


def test_a_row_without_a_wording_is_a_failure_unless_it_brings_its_own(read: Reader) -> None:
    """There is no documented wording for text, image and video together; a row's own instructions are sent."""
    row = {"text": "a", **URLS}
    context = asking(instructions=CORPUS)
    ((code, message),) = _failures(read(row, context=context))
    assert (code, "text and image and video" in message) == ("no_wording", True)
    (request,) = _requests(read(row | {"words": "my own"}, context=context, instructions="words"))
    assert request.instructions == "my own"
    verbatim = asking(instructions="for all")
    assert [one.instructions for one in _requests(read(row, context=verbatim))] == ["for all"]


@pytest.mark.parametrize("scenario", ["query", "clustering", "classification", "sts"])
def test_other_scenarios_send_one_string(scenario: Any, read: Reader) -> None:
    """All rows have the same instructions, whatever their modalities."""
    context = asking(instructions=InstructionOptions(scenario, "text/image", "Find it"))
    chunk = read({"text": "a"}, {"image": URLS["image"]}, {"text": "a", **URLS}, context=context)
    expected = "Target_modality: text/image.\nInstruction:Find it\nQuery:"
    assert [request.instructions for request in _requests(chunk)] == [expected] * 3


def test_instructions_are_part_of_the_fingerprint_as_they_are_sent(read: Reader) -> None:
    """A built string and the same string verbatim have one fingerprint; other instructions, or none, have another."""
    built = read({"text": "a"}, context=asking(instructions=CORPUS))
    same = "Instruction:Compress the text into one word.\nQuery:"
    verbatim = read({"text": "a"}, context=asking(instructions=same))
    own = read({"text": "a", "words": same}, instructions="words")
    others = [read({"text": "a"}), read({"text": "a"}, context=asking(instructions=same + " "))]
    first, *rest = (chunk.keys["fingerprint"].to_pylist() for chunk in (built, verbatim, own, *others))
    assert rest[0] == rest[1] == first
    assert len({bytes(one[0]) for one in (first, *rest)}) == 3


def test_a_rows_own_instructions_count_before_the_configs(read: Reader) -> None:
    """Column and body are sent unchanged; an empty cell means the config's; a body takes precedence over a column."""
    body = {"input": [{"type": "text", "text": "a"}], "instructions": "from the body"}
    rows = ({"text": "a", "p": " as is \n"}, {"text": "a", "p": " "}, {"text": "a"}, {"body": body, "p": "column"})
    chunk = read(*rows, context=asking(instructions="config"), instructions="p")
    assert [one.instructions for one in _requests(chunk)] == [" as is \n", "config", "config", "from the body"]


def test_instructions_that_are_no_text_or_not_taken_are_failures(read: Reader) -> None:
    """The message names the column; a model without instructions has its own code."""
    ((code, message),) = _failures(read({"text": "a", "p": 5}, instructions="p"))
    assert (code, "column p" in message) == ("bad_field", True)
    old = asking(VERSIONS["250615"])
    ((code, _),) = _failures(read({"text": "a", "p": "x"}, context=old, instructions="p"))
    assert code == "instructions_unsupported"


# Sparse


@pytest.mark.parametrize(
    ("cell", "asked"),
    [(True, True), ("true", True), (" TRUE ", True), (False, False), ("false", False), (None, True), ("", True)],
)
def test_a_column_says_whether_a_row_asks_for_sparse(cell: Any, asked: bool, read: Reader) -> None:
    """True and false take precedence over the config; an empty cell means the config's setting."""
    context = asking(sparse=True)
    assert [one.sparse for one in _requests(read({"text": "a", "s": cell}, context=context, sparse="s"))] == [asked]


@pytest.mark.parametrize("cell", [1, "yes", [True], {"type": "enabled"}])
def test_a_column_that_is_neither_true_nor_false_is_a_failure(cell: Any, read: Reader) -> None:
    """The message names the column."""
    ((code, message),) = _failures(read({"text": "a", "s": cell}, sparse="s"))
    assert (code, "column s" in message) == ("bad_field", True)


def test_sparse_goes_out_on_text_alone(read: Reader) -> None:
    """The config's setting applies to text rows only; a row with media that asks for sparse itself is a failure."""
    enabled = {"sparse_embedding": {"type": "enabled"}}
    image = {"type": "image_url", "image_url": {"url": URLS["image"]}}
    text = {"type": "text", "text": "a"}
    rows = ({"text": ["a", "b"]}, {"text": "a", "image": URLS["image"]}, {"body": {"input": [text, text], **enabled}})
    chunk = read(*rows, context=asking(sparse=True))
    assert [request.sparse for request in _requests(chunk)] == [True, False, True]
    bad = read({"body": {"input": [text, image], **enabled}}, {"image": URLS["image"], "s": True}, sparse="s")
    assert [code for code, _ in _failures(bad)] == ["sparse_needs_text_only"] * 2
    off = {"sparse_embedding": {"type": "disabled"}}
    assert [one.sparse for one in _requests(read({"body": {"input": [text, image], **off}}))] == [False]


# Sampling of videos


def test_sampling_is_laid_over_argument_by_argument(read: Reader) -> None:
    """The arguments of a part take precedence over the row's column, and those over the config."""
    context = asking(video=VideoSampling(fps=1.0, min_frames=8, max_video_tokens=20_480))
    row = {"input": [_video({"fps": 2}), _video({}), {"type": "text", "text": "a"}], "how": {"fps": 3, "min_frames": 5}}
    (request,) = _requests(read(row, context=context, video_sampling="how"))
    assert [part.sampling for part in request.parts] == [
        VideoSampling(fps=2.0, min_frames=5, max_video_tokens=20_480),
        VideoSampling(fps=3.0, min_frames=5, max_video_tokens=20_480),
        None,
    ]
    (bare,) = _requests(read({"video": URLS["video"], "text": "a", "image": URLS["image"]}, context=context))
    assert [part.sampling for part in bare.parts] == [None, None, context.model.options.video]
    (unset,) = _requests(read({"video": URLS["video"]}))
    assert unset.parts == (Part(VIDEO, URLS["video"]),)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"fps": 0.1}, "fps is 0.1; it must be a number from 0.2 to 5"),
        ({"fps": "1"}, "fps"),
        ({"max_video_tokens": 10_239}, "max_video_tokens"),
        ({"min_frame_tokens": 129}, "min_frame_tokens"),
        ({"max_frame_tokens": 127}, "max_frame_tokens"),
        ({"min_frames": 8.5}, "min_frames"),
        ({"frames": 8}, "frames"),
    ],
)
def test_sampling_outside_the_documented_ranges_is_a_failure(given: dict[str, Any], says: str, read: Reader) -> None:
    """For a part and for a column the message names the argument and, if there is one, its range."""
    ((code, message),) = _failures(read({"input": [_video(given)]}))
    assert (code, message.startswith(f"input[0].video_url.{says}")) == ("bad_part", True)
    ((code, message),) = _failures(read({"video": URLS["video"], "how": given}, video_sampling="how"))
    assert (code, message.startswith(f"column how.{says}")) == ("bad_field", True)


def test_a_sampling_column_holds_an_object(read: Reader) -> None:
    """JSON in a text cell works as in CSV; other values are failures that name the column. Empty means the config's."""
    good = read(
        {"video": URLS["video"], "how": ' {"fps": 2}'}, {"video": URLS["video"], "how": " "}, video_sampling="how"
    )
    assert [one.parts[0].sampling for one in _requests(good)] == [VideoSampling(fps=2.0), None]
    for cell, code in ((2, "bad_field"), ("fast", "bad_field"), ([1], "bad_field"), ("{fps", "bad_json")):
        ((found, _),) = _failures(read({"video": URLS["video"], "how": cell}, video_sampling="how"))
        assert found == code


def test_a_model_without_sampling_is_told(read: Reader) -> None:
    """Version 250615 takes videos, but no sampling arguments."""
    old = asking(VERSIONS["250615"])
    assert [code for code, _ in _failures(read({"input": [_video({"fps": 1})]}, context=old))] == [
        "sampling_unsupported"
    ]
    assert len(_requests(read({"input": [_video({})]}, context=old))) == 1


def test_sampling_changes_fingerprint_and_estimate(read: Reader) -> None:
    """Other frames give another vector and another price."""
    chunk = read(
        {"input": [_video({})]}, {"input": [_video({"min_frames": 5})]}, {"input": [_video({"min_frames": 6})]}
    )
    assert len(set(chunk.keys["fingerprint"].to_pylist())) == 3
    assert chunk.keys["image_tokens"].to_pylist() == [16 * 640, 5 * 640, 6 * 640]


# What belongs to the run


@pytest.mark.parametrize(
    ("context", "good", "bad"),
    [
        (CONTEXT, {"dimensions": 2048}, {"dimensions": 1024}),
        (asking(dimensions=1024), {"dimensions": 1024}, {"dimensions": 2048}),
        (
            asking(VERSIONS["250328"], dimensions=1024),
            {"dimensions": 1024},
            {"dimensions": 2048},
        ),
        (CONTEXT, {"encoding_format": "base64"}, {"encoding_format": "float"}),
        (
            asking(encoding_format=EncodingFormat.FLOAT),
            {"encoding_format": "float"},
            {"encoding_format": "base64"},
        ),
        (
            asking(encoding_format=EncodingFormat.NULL),
            {"encoding_format": "float"},
            {"encoding_format": "base64"},
        ),
        (
            asking(encoding_format=EncodingFormat.ABSENT),
            {"encoding_format": None},
            {"encoding_format": "null"},
        ),
        (CONTEXT, {"multi_embedding": {"type": "disabled"}}, {"multi_embedding": {"type": "enabled"}}),
        (
            asking(multi_embedding="zstd"),
            {"multi_embedding": {"type": "enabled", "compression": "zstd"}},
            {"multi_embedding": {"type": "disabled"}},
        ),
        (CONTEXT, {"model": CONTEXT.model.name}, {"model": "doubao-embedding-vision-250615"}),
        (CONTEXT, {}, {"user": "me"}),
    ],
)
def test_a_body_may_repeat_what_the_run_says_and_no_more(
    context: ReadContext, good: dict[str, Any], bad: dict[str, Any], read: Reader
) -> None:
    """The same value or null is accepted; another value or an unknown field is a failure that names it."""
    text = {"input": [{"type": "text", "text": "a"}]}
    assert len(_requests(read({"body": text | good}, context=context))) == 1
    assert len(_requests(read({"body": text | dict.fromkeys(good)}, context=context))) == 1
    ((code, message),) = _failures(read({"body": text | bad}, context=context))
    assert (code, message.startswith(f"body.{next(iter(bad))} ")) == ("bad_field", True)


def test_vectors_of_tokens_are_another_purchase(read: Reader) -> None:
    """Whether per-token vectors are requested is in the fingerprint; their encoding and the encoding format are not."""
    contexts = (
        CONTEXT,
        asking(encoding_format=EncodingFormat.FLOAT),
        asking(multi_embedding="plain"),
        asking(multi_embedding="zstd"),
    )
    plain, as_float, multi, packed = (
        read({"text": "a"}, {"image": URLS["image"]}, context=one).keys["fingerprint"].to_pylist() for one in contexts
    )
    assert plain == as_float
    assert multi == packed
    assert not set(plain) & set(multi)


# Length


def test_rows_above_the_context_are_counted_and_staged_whole(read: Reader) -> None:
    """A row with an estimate above the model's context is counted, but neither cut nor refused."""
    caps = replace(CAPS, context_tokens=1_400)
    rows = ({"text": "天" * 3_000}, {"text": "short"}, {"text": "天" * 200, "image": URLS["image"]}, {"text": 5})
    chunk = read(*rows, context=asking(caps))
    assert chunk.over_context == 2
    assert chunk.staged.num_rows == 3
    assert request_from_json(chunk.staged["request"][0].as_py()).request.parts[0].value == "天" * 3_000
    assert read(*rows).over_context == 0


# Columns in other formats


def test_overrides_in_csv_and_parquet(tmp_path: Path) -> None:
    """Text cells and typed columns give the same; Parquet reads the mapped columns of settings too."""
    columns = ColumnMap(text="t", video="v", instructions="p", sparse="s", video_sampling="how")
    (tmp_path / "m.csv").write_text(
        't,v,p,s,how\na,,words,TRUE,\nb,https://h/v.mp4,,,"{""fps"": 2, ""min_frames"": 8}"\nc,,,,\n'
    )
    table = pa.table(
        {
            "t": ["a", "b", "c"],
            "v": pa.array([None, URLS["video"], None]),
            "p": pa.array(["words", None, None]),
            "s": pa.array([True, None, None]),
            "how": pa.array(
                [None, {"fps": 2.0, "min_frames": 8, "max_video_tokens": None}, None],
                pa.struct([("fps", pa.float64()), ("min_frames", pa.int64()), ("max_video_tokens", pa.int64())]),
            ),
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    expected = [
        Request((Part(TEXT, "a"),), "words", True),
        Request((Part(TEXT, "b"), Part(VIDEO, URLS["video"], VideoSampling(fps=2.0, min_frames=8)))),
        Request((Part(TEXT, "c"),)),
    ]
    for name in ("m.csv", "m.parquet"):
        assert _requests(_read_file(tmp_path / name, CONTEXT, columns)) == expected
