"""Staged requests: what is written is read back."""

from arkbeam.base.records import Modality, Part, Request, VideoSampling
from arkbeam.manifest.staging import StagedRequest, request_from_json, request_to_json, text_to_json
from hypothesis import given
from hypothesis import strategies as st

_strings = st.text(st.characters(codec="utf-8"), max_size=20)
_samplings = st.builds(VideoSampling, fps=st.none() | st.floats(0.2, 5), min_frames=st.none() | st.integers(5, 16))
_parts = st.tuples(st.builds(Part, st.sampled_from(Modality), _strings, st.none() | _samplings), st.none() | _strings)


@given(st.lists(_parts, min_size=1, max_size=4), st.none() | _strings, st.booleans())
def test_a_staged_request_survives_json(
    parts: list[tuple[Part, str | None]], instructions: str | None, sparse: bool
) -> None:
    """Parts, versions, sampling, instructions and sparse are read back unchanged."""
    staged = StagedRequest(
        Request(tuple(part for part, _ in parts), instructions, sparse), tuple(version for _, version in parts)
    )
    assert request_from_json(request_to_json(staged)) == staged


def test_unset_fields_are_absent() -> None:
    """The JSON holds only what is set."""
    staged = StagedRequest(Request((Part(Modality.TEXT, "蓝"), Part(Modality.IMAGE, "/a.png"))), (None, "1-2"))
    assert request_to_json(staged) == '{"parts":[["text","蓝"],["image","/a.png","1-2"]]}'.encode()
    video = StagedRequest(Request((Part(Modality.VIDEO, "/v.mp4", VideoSampling(min_frames=8)),)), (None,))
    assert request_to_json(video) == b'{"parts":[["video","/v.mp4",null,{"min_frames":8}]]}'


@given(_strings, st.none() | _strings, st.booleans())
def test_the_short_cut_for_texts_gives_the_same(text: str, instructions: str | None, sparse: bool) -> None:
    """`text_to_json` agrees with `request_to_json`."""
    request = Request((Part(Modality.TEXT, text),), instructions, sparse)
    assert text_to_json(text, instructions, sparse) == request_to_json(StagedRequest(request, (None,)))
