"""Guess from the first rows of a manifest which columns hold ids, texts, images and videos. Pure functions."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import orjson

from arkbeam.base.records import Modality
from arkbeam.base.redaction import redact
from arkbeam.base.schema import OWN_COLUMNS
from arkbeam.manifest.cells import Binary
from arkbeam.media import detect_kind
from arkbeam.media.uris import extension_of, is_web, scheme_of

What = Literal[
    "empty", "text", "code", "number", "boolean", "date", "URL", "image", "video", "parts", "object", "list", "bytes"
]
IMAGE_ENDINGS = frozenset(
    [
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "apng",
        "gif",
        "webp",
        "bmp",
        "dib",
        "tif",
        "tiff",
        "ico",
        "icns",
        "sgi",
        "jp2",
        "j2k",
        "heic",
        "heif",
        "avif",
    ]
)
VIDEO_ENDINGS = frozenset(["mp4", "m4v", "avi", "mov"])
TEXTS_MAX = 3
KEPT_MAX = 12
EXAMPLES = 3
_FORMS: tuple[Literal["body", "input"], ...] = ("body", "input")
_EXAMPLE_CHARS = 60
_SHARE_MIN = 0.6  # of the filled cells must be of one kind
_KEPT_CHARS = 300  # longer texts are not copied to the output
_TEXT_CHARS = 12  # texts are longer on average, unless the name of their column says that they are texts
_CELL_CHARS = 4_096  # how much of a cell is looked at
_CODE = re.compile(r"[\w.:/@#+-]{1,64}", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ][\d:.]+(?:Z|[+-]\d\d:?\d\d)?)?")
_NUMBER = re.compile(r"[+-]?\d{1,30}(?:[.,]\d{1,30})?(?:[eE][+-]?\d{1,3})?")
_DATA = re.compile(r"data:(image|video)/", re.IGNORECASE)
_ID_NAMES = [
    "id",
    "custom_id",
    "sku",
    "uuid",
    "guid",
    "key",
    "asin",
    "isbn",
    "code",
    "item_id",
    "product_id",
    "编号",
    "编码",
]
_TEXT_NAMES = [
    "text",
    "title",
    "name",
    "caption",
    "headline",
    "subject",
    "summary",
    "abstract",
    "description",
    "desc",
    "content",
    "body",
    "question",
    "answer",
    "review",
    "comment",
    "line",
    "标题",
    "名称",
    "描述",
    "内容",
    "文本",
    "简介",
]
_IMAGE_WORDS = ["image", "img", "photo", "picture", "pic", "thumb", "cover", "poster", "图", "照片", "封面"]
_VIDEO_WORDS = ["video", "clip", "movie", "视频"]


@dataclass(frozen=True, slots=True)
class Column:
    """What the sampled cells of a column show. Shares are of the filled cells, `filled` of all rows."""

    name: str
    what: What
    """What most of the filled cells are."""
    share: float
    filled: float
    distinct: float
    mean_chars: float
    forms: Mapping[str, float]
    """The share of each form, such as `URL`, `path`, `data` or `bytes`, of images and videos."""
    examples: tuple[str, ...]
    """A few values, shortened, without secrets."""


@dataclass(frozen=True, slots=True)
class Guess:
    """Which columns hold what. `form`: how a row says what to embed; `reasons` by key, `doubts` for a person to check."""

    form: Literal["columns", "body", "input", "nothing"]
    id: str | None = None
    text: tuple[str, ...] = ()
    image: tuple[str, ...] = ()
    video: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


def describe_columns(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Describe each column by its cells in some rows."""
    return [_describe(name, [row.get(name) for row in rows]) for name in names]


def guess_columns(columns: Sequence[Column], rows: int) -> Guess:
    """Guess what each column holds. `rows` is how many rows were looked at."""
    by_name = {column.name: column for column in columns}
    identity, id_reason = _guess_id(columns, rows)
    for form in _FORMS:
        column = by_name.get(form)
        if column is not None and (column.what == "parts" or (form == "body" and column.what == "object")):
            reason = f"rows have the field {form}, as the API and the vendor's batch service take them"
            kept = _guess_keep(columns, {form, identity, "custom_id", "method", "url"})
            return Guess(form, identity, keep=kept, reasons={form: reason, **id_reason})
    reasons, doubts = dict(id_reason), list[str]()
    image = _guess_media("image", columns, _IMAGE_WORDS, reasons, doubts)
    video = _guess_media("video", columns, _VIDEO_WORDS, reasons, doubts)
    text = _guess_text([one for one in columns if one.name not in (identity, *image, *video)], reasons)
    if not (text or image or video):
        return Guess("nothing", doubts=tuple(doubts))
    keep = _guess_keep(columns, {identity, *video, *(name for name in image if by_name[name].forms.get("data"))})
    return Guess("columns", identity, text, image, video, keep, reasons, tuple(doubts))


def _guess_id(columns: Sequence[Column], rows: int) -> tuple[str | None, dict[str, str]]:
    """Return the column of the ids and the reason; a name such as `sku` counts more than the values alone."""
    unique = [
        column
        for column in columns
        if column.filled == 1 and column.distinct == 1 and column.what in ("code", "number", "text") and rows
    ]
    ranked = sorted(
        (column for column in unique if _id_rank(column.name) < len(_ID_NAMES) or _is_code(column)),
        key=lambda column: _id_rank(column.name),
    )
    if not ranked:
        return None, {"id": "no column has a different value in each row, so that ids are <file>:<row>"}
    best = ranked[0]
    reason = f"different in all {rows:,} rows that were looked at"
    return best.name, {"id": reason if rows > 1 else "the only row has one"}


def _id_rank(name: str) -> int:
    bare = name.strip().lower()
    if bare in _ID_NAMES:
        return _ID_NAMES.index(bare)
    return len(_ID_NAMES) - 1 if bare.endswith(("_id", "-id", " id")) else len(_ID_NAMES)


def _is_code(column: Column) -> bool:
    return column.what == "code" and column.mean_chars <= 40 and not _has_word(column.name, _TEXT_NAMES)


def _guess_media(
    kind: Literal["image", "video"],
    columns: Sequence[Column],
    words: Sequence[str],
    reasons: dict[str, str],
    doubts: list[str],
) -> tuple[str, ...]:
    """Return the column with the images, or the videos: one, since all media of a row go into one vector."""
    sure = [column for column in columns if column.what == kind]
    likely = [column for column in columns if column.what == "URL" and _has_word(column.name, words)]
    ranked = sorted(sure, key=lambda one: (not _has_word(one.name, words), -one.filled)) + likely
    if not ranked:
        doubts += [
            f"{redact(repr(column.name), 80)} has URLs whose ending does not show what they are"
            for column in columns
            if column.what == "URL" and kind == "image" and not _has_word(column.name, _VIDEO_WORDS)
        ]
        return ()
    best = ranked[0]
    if best in sure:
        forms = ", ".join(f"{form} {share:.0%}" for form, share in best.forms.items())
        reasons[kind] = f"{best.share:.0%} of the filled cells are {kind}s ({forms})"
    else:
        reasons[kind] = "URLs, and the name says so"
    if len(ranked) > 1:
        others = ", ".join(redact(repr(one.name), 40) for one in ranked[1:4])
        doubts.append(f"also {kind}s, but one vector is made of all media of a row: {others}")
    return (best.name,)


def _guess_text(columns: Sequence[Column], reasons: dict[str, str]) -> tuple[str, ...]:
    """Return up to three columns with texts, those with the best names first, in the order of the file."""
    candidates = [
        column
        for column in columns
        if column.what in ("text", "code")
        and (_has_word(column.name, _TEXT_NAMES) or (column.what == "text" and column.mean_chars >= _TEXT_CHARS))
        and (column.distinct > 0.1 or len(column.examples) < EXAMPLES)
    ]
    named = [column for column in candidates if _has_word(column.name, _TEXT_NAMES)]
    chosen = named or candidates
    chosen = sorted(chosen, key=lambda column: -column.mean_chars)[:TEXTS_MAX]
    texts = tuple(column.name for column in columns if column in chosen)
    if texts:
        mean = sum(column.mean_chars for column in chosen)
        reasons["text"] = f"texts of about {mean:,.0f} characters in all" + (", and the names say so" if named else "")
    return texts


def _guess_keep(columns: Sequence[Column], without: set[str | None]) -> tuple[str, ...]:
    """Return columns of short values that are worth repeating in the output."""
    kept = [
        column.name
        for column in columns
        if column.name not in without
        and column.name not in OWN_COLUMNS
        and column.what not in ("empty", "bytes", "parts", "object", "list")
        and "data" not in column.forms
        and "bytes" not in column.forms
        and column.mean_chars <= _KEPT_CHARS
    ]
    folded = Counter(name.lower() for name in kept)
    return tuple(name for name in kept if folded[name.lower()] == 1)[:KEPT_MAX]


def _has_word(name: str, words: Sequence[str]) -> bool:
    bare = name.strip().lower()
    parts = re.split(r"[\W_]+", bare)
    return any(word in parts or word in bare.rstrip("s0123456789").split("_") for word in words) or any(
        word in bare for word in words if not word.isascii()
    )


def _describe(name: str, cells: Sequence[Any]) -> Column:
    found = [(value, *_classify(value)) for value in cells]
    filled = [one for one in found if one[1] != "empty"]
    if not filled:
        return Column(name, "empty", 1.0, 0.0, 0.0, 0.0, {}, ())
    whats = Counter(what for _, what, _ in filled)
    what, count = _merge_texts(whats)
    forms = Counter(form for _, one, form in filled if one == what and form)
    shown = [_show(value) for value, _, _ in filled]
    return Column(
        name,
        what if count / len(filled) >= _SHARE_MIN else "text",
        count / len(filled),
        len(filled) / len(cells),
        len({repr(value)[:_CELL_CHARS] for value, _, _ in filled}) / len(filled),
        sum(len(value) if isinstance(value, str) else 8 for value, _, _ in filled) / len(filled),
        {form: number / count for form, number in forms.most_common()},
        tuple(dict.fromkeys(shown))[:EXAMPLES],
    )


def _merge_texts(whats: Counter[What]) -> tuple[What, int]:
    """Return the most common kind. Words without blanks look like codes, so that texts and codes are texts together."""
    what, count = whats.most_common(1)[0]
    if what in ("text", "code") and whats["text"] and whats["code"]:
        return "text", whats["text"] + whats["code"]
    return what, count


def _classify(value: Any) -> tuple[What, str]:  # noqa: PLR0911 - one case for each type
    """Return what a cell is, and the form of an image or a video."""
    if value is None:
        return "empty", ""
    if isinstance(value, str):
        return _classify_text(value[:_CELL_CHARS])
    if isinstance(value, bool):
        return "boolean", ""
    if isinstance(value, (int, float, Decimal)):
        return "number", ""
    if isinstance(value, (date, time)):
        return "date", ""
    if isinstance(value, UUID):
        return "code", ""
    if isinstance(value, Binary):
        return _classify_bytes(value)
    if isinstance(value, dict):
        return _classify_object(value)
    if isinstance(value, list):
        return _classify_list(value)
    return "object", ""


def _classify_text(text: str) -> tuple[What, str]:
    bare = text.strip()
    if not bare:
        return "empty", ""
    if bare[0] in "[{" and bare[-1] in "]}":
        try:
            inner = orjson.loads(bare)
        except orjson.JSONDecodeError:
            return "text", ""
        return _classify_list(inner) if isinstance(inner, list) else _classify_object(inner)
    medium = _classify_place(bare)
    if medium is not None:
        return medium
    if bare.lower() in ("true", "false"):
        return "boolean", ""
    if _NUMBER.fullmatch(bare):
        return "number", ""
    if _DATE.fullmatch(bare):
        return "date", ""
    return ("code" if _CODE.fullmatch(bare) else "text"), ""


def _classify_place(text: str) -> tuple[What, str] | None:
    """Return what a text is if it is a data URI, a URL, or the path of an image or a video."""
    data = _DATA.match(text)
    if data is not None:
        return ("image" if data[1].lower() == "image" else "video"), "data"
    if "\n" in text:
        return None
    scheme = scheme_of(text)
    ending = (extension_of(text) if scheme is not None else text.rpartition(".")[2]).lower()
    form = "path" if scheme is None else "URL" if is_web(text) else "object"
    if form == "path" or " " not in text:
        if ending in IMAGE_ENDINGS:
            return "image", form
        if ending in VIDEO_ENDINGS:
            return "video", form
    return ("URL", "") if form == "URL" and " " not in text else None


def _classify_bytes(value: Binary) -> tuple[What, str]:
    kind = detect_kind(value.data[:64])
    if kind is not None:
        return ("image" if kind.modality is Modality.IMAGE else "video"), "bytes"
    text = value.text
    return _classify_text(text[:_CELL_CHARS]) if isinstance(text, str) else ("bytes", "")


def _classify_object(value: Mapping[str, Any]) -> tuple[What, str]:
    if value.keys() <= {"bytes", "path"} and value:
        inner = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        return _classify(inner) if not isinstance(inner, dict) else ("object", "")
    return "object", ""


def _classify_list(value: Sequence[Any]) -> tuple[What, str]:
    if not value:
        return "empty", ""
    first = value[0]
    if isinstance(first, dict) and first.get("type") in ("text", "image_url", "video_url"):
        return "parts", ""
    if isinstance(first, (str, Binary)):
        what, form = _classify(first)
        return (what, form) if what in ("image", "video", "text", "URL") else ("list", "")
    return "list", ""


def _show(value: Any) -> str:
    return redact(value[:_CELL_CHARS] if isinstance(value, str) else repr(value)[:_CELL_CHARS], _EXAMPLE_CHARS)
