"""Instructions are the vendor's templates byte for byte; invalid options are rejected."""

import pickle
from collections.abc import Collection

import pytest
from arkbeam.ark.instructions import SCENARIOS, WORDINGS, InstructionOptions, build_instructions
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import Failure, Modality
from hypothesis import given
from hypothesis import strategies as st

TEXT, IMAGE, VIDEO = Modality.TEXT, Modality.IMAGE, Modality.VIDEO
TASKS = tuple(scenario for scenario in SCENARIOS if scenario != "corpus")
MIXES = st.frozensets(st.sampled_from(Modality), min_size=1)


@pytest.mark.parametrize(
    ("modalities", "golden"),
    [
        ({TEXT}, b"Instruction:Compress the text into one word.\nQuery:"),
        ({IMAGE}, b"Instruction:Compress the image into one word.\nQuery:"),
        ({VIDEO}, b"Instruction:Compress the video into one word.\nQuery:"),
        ({TEXT, IMAGE}, b"Instruction:Compress the text and image into one word.\nQuery:"),
        ({TEXT, VIDEO}, b"Instruction:Compress the text and video into one word.\nQuery:"),
        ({IMAGE, VIDEO}, b"Instruction:Compress the image and video into one word.\nQuery:"),
        ([IMAGE, TEXT, IMAGE, TEXT], b"Instruction:Compress the text and image into one word.\nQuery:"),
    ],
)
def test_corpus_names_what_the_row_is_made_of(modalities: Collection[Modality], golden: bytes) -> None:
    """Each combination of modalities with a vendor's wording gives exactly its template, in any order and number."""
    built = build_instructions(InstructionOptions("corpus"), modalities)
    assert isinstance(built, str)
    assert built.encode() == golden


def test_a_mix_without_the_vendors_wording_is_a_failure() -> None:
    """Text, image and video together have no wording: the row fails, and the message says what to set instead."""
    built = build_instructions(InstructionOptions("corpus"), {TEXT, IMAGE, VIDEO})
    assert isinstance(built, Failure)
    assert built.code == "no_wording"
    assert "text and image and video" in built.message
    assert "model.instructions" in built.message


@pytest.mark.parametrize(
    ("target", "instruction", "golden"),
    [
        (
            "text",
            "Retrieve semantically similar text",
            b"Target_modality: text.\nInstruction:Retrieve semantically similar text\nQuery:",
        ),
        (
            "image",
            "Compress the text into one word",
            b"Target_modality: image.\nInstruction:Compress the text into one word\nQuery:",
        ),
        ("video", "I", b"Target_modality: video.\nInstruction:I\nQuery:"),
        ("text and image", "I", b"Target_modality: text and image.\nInstruction:I\nQuery:"),
        ("text and video", "I", b"Target_modality: text and video.\nInstruction:I\nQuery:"),
        ("image and video", "I", b"Target_modality: image and video.\nInstruction:I\nQuery:"),
        ("text/image/video", "I", b"Target_modality: text/image/video.\nInstruction:I\nQuery:"),
        (
            "text/video/text and video",
            "根据这个问题，找到能回答这个问题的相应文本或图片",
            (
                "Target_modality: text/video/text and video.\n"
                "Instruction:根据这个问题，找到能回答这个问题的相应文本或图片\nQuery:"
            ).encode(),
        ),
    ],
)
@pytest.mark.parametrize("scenario", TASKS)
def test_all_other_scenarios_name_the_library_and_the_task(
    scenario: str, target: str, instruction: str, golden: bytes
) -> None:
    """Target and instruction are inserted into the second template unchanged."""
    built = build_instructions(InstructionOptions(scenario, target, instruction), {TEXT})  # type: ignore[arg-type]
    assert isinstance(built, str)
    assert built.encode() == golden


@given(st.sampled_from(TASKS), MIXES, MIXES)
def test_other_scenarios_do_not_look_at_the_row(
    scenario: str, left: frozenset[Modality], right: frozenset[Modality]
) -> None:
    """Except with `corpus`, all rows have the same instructions."""
    options = InstructionOptions(scenario, "text/image", "Find it")  # type: ignore[arg-type]
    assert build_instructions(options, left) == build_instructions(options, right)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        (("search",), ("model.instructions.scenario", "'search'", "corpus, query")),
        (("corpus", "text"), ("model.instructions.target_modality", "corpus")),
        (("corpus", None, "I"), ("model.instructions.instruction", "corpus")),
        (("query", None, "I"), ("model.instructions.target_modality", "missing", "query")),
        (("sts", "text"), ("model.instructions.instruction", "missing", "sts")),
        (("clustering",), ("model.instructions.target_modality", "missing", "clustering")),
        (("classification", "text", " \t"), ("model.instructions.instruction", "empty")),
        (("query", "text", "two\nlines"), ("model.instructions.instruction", "one line")),
        (("query", "text", "from a YAML block\n"), ("model.instructions.instruction", "one line")),
        (("query", "text", "a\ud800"), ("model.instructions.instruction", "surrogate")),
        *(
            (("query", target, "I"), ("model.instructions.target_modality", "text and image"))
            for target in (
                "",
                "audio",
                "Text",
                "text,image",
                "text / image",
                "text/",
                "text|image",
                "image and text",
                "text and image and video",
                "text and text",
                "text and image.",
            )
        ),
        (("query", "text/image/text", "I"), ("model.instructions.target_modality", "twice")),
    ],
)
def test_what_no_template_has_is_refused(given_: tuple[str | None, ...], words: tuple[str, ...]) -> None:
    """Invalid options are rejected when the config is read; the message has the key and the rule."""
    with pytest.raises(ConfigError) as caught:
        InstructionOptions(*given_)  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words)


@given(st.lists(st.sampled_from(WORDINGS), min_size=1, unique=True))
def test_every_list_of_the_vendors_words_is_a_target(kinds: list[str]) -> None:
    """Different kinds of samples may be joined in any number and order."""
    built = build_instructions(InstructionOptions("query", "/".join(kinds), "I"), {TEXT})
    assert built == f"Target_modality: {'/'.join(kinds)}.\nInstruction:I\nQuery:"


def test_options_survive_pickling() -> None:
    """Beam pickles them for the workers."""
    options = InstructionOptions("query", "text/image", "I")
    assert pickle.loads(pickle.dumps(options)) == options
