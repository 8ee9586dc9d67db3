"""The table of models. Options that the model does not support are rejected when the config is read."""

import pickle
from dataclasses import replace

import pytest
from arkbeam.ark.instructions import InstructionOptions
from arkbeam.ark.models import (
    ALLOWABLE,
    VERSIONS,
    ModelOptions,
    PriceOptions,
    check_options,
    dimensions_published,
    dimensions_sent,
    dimensions_stored,
    find_capabilities,
    find_misfit,
    list_notes,
)
from arkbeam.base.capabilities import EncodingFormat, cost_cny, exceeds_context
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import Modality, Part, Request, TokenEstimate, VideoSampling

NAME = "doubao-embedding-vision-"
TEXT, IMAGE, VIDEO = Part(Modality.TEXT, "t"), Part(Modality.IMAGE, "i"), Part(Modality.VIDEO, "v")
SAMPLED = Part(Modality.VIDEO, "v", VideoSampling(fps=1.0))


@pytest.mark.parametrize(
    ("version", "dimensions", "field", "sparse", "instructions", "video", "context_tokens"),
    [
        ("241215", (3072,), False, False, False, False, 8_192),
        ("250328", (2048,), False, False, False, False, 8_192),
        ("250615", (2048, 1024), True, True, False, True, 131_072),
        ("251215", (2048, 1024), True, True, True, True, 131_072),
    ],
)
def test_table_is_the_vendors(
    version: str,
    dimensions: tuple[int, ...],
    field: bool,
    sparse: bool,
    instructions: bool,
    video: bool,
    context_tokens: int,
) -> None:
    """Each version has the capabilities of the vendor's model list; prices and limits are the same for all."""
    caps = find_capabilities(ModelOptions(NAME + version))
    assert caps is VERSIONS[version]
    assert (caps.version, caps.dimensions, caps.dimensions_field) == (version, dimensions, field)
    assert (caps.sparse, caps.instructions, caps.video, caps.mixed) == (sparse, instructions, video, video)
    assert (caps.video_sampling, caps.multi_embedding) == (instructions, instructions)
    assert caps.context_tokens == context_tokens
    assert (caps.price_text_cny_per_million, caps.price_image_cny_per_million) == (0.7, 1.8)
    assert (caps.rpm, caps.tpm) == (15_000, 1_200_000)


@pytest.mark.parametrize(
    ("options", "version"),
    [
        (ModelOptions("skylark-embedding-vision-251215"), "251215"),
        (ModelOptions("ep-20250101-abc", like="250615"), "250615"),
        (ModelOptions("ep-m-20250101-abc", like=NAME + "250615"), "250615"),
        (ModelOptions("doubao-embedding-vision", like="skylark-embedding-vision-251215"), "251215"),
        (ModelOptions("our-own-name", like="251215"), "251215"),
        (ModelOptions(NAME + "250615", like="250615"), "250615"),
    ],
)
def test_version_is_found(options: ModelOptions, version: str) -> None:
    """A Model ID contains its version; any other name needs `like`."""
    assert find_capabilities(options) is VERSIONS[version]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ModelOptions("ep-20250101-abc"), ("ep-20250101-abc", "model.like")),
        (ModelOptions("doubao-embedding-vision"), ("model.like",)),
        (ModelOptions(""), ("model.like",)),
        (ModelOptions(NAME + "250615-x"), ("model.like",)),
        (ModelOptions(NAME + "25061\uff15"), ("model.like",)),
        (ModelOptions("ep-1", like="latest"), ("model.like", "'latest'")),
        (ModelOptions("ep-1", like="ep-2"), ("model.like", "'ep-2'")),
        (ModelOptions("ep-1", like=""), ("model.like",)),
        (ModelOptions(NAME + "250615", like="251215"), ("contradict", NAME + "250615")),
        (ModelOptions(NAME + "251315"), ("251315", "not a date")),
        (ModelOptions(NAME + "240101"), ("240101", "older")),
    ],
)
def test_name_without_a_usable_version_is_refused(options: ModelOptions, words: tuple[str, ...]) -> None:
    """The message says what is wrong and which key to change."""
    with pytest.raises(ConfigError) as caught:
        find_capabilities(options)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(("version", "base"), [("260301", "251215"), ("250901", "250615"), ("250101", "241215")])
def test_unknown_version_is_like_the_one_before_it(version: str, base: str) -> None:
    """An unknown version has the capabilities of the newest known version before it, and a note says so."""
    caps = find_capabilities(ModelOptions(NAME + version))
    assert replace(caps, version=base, notes=()) == replace(VERSIONS[base], notes=())
    (note,) = caps.notes
    assert version in note
    assert base in note


def test_withdrawn_versions_are_noted() -> None:
    """Versions that the service no longer offers have a note; live versions have none."""
    assert {version for version, caps in VERSIONS.items() if caps.notes} == {"241215", "250328"}


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (ModelOptions(NAME + "241215", dimensions=2048), "3072"),
        (ModelOptions(NAME + "250328", dimensions=512), "1024 or 2048"),
        (ModelOptions(NAME + "250328", dimensions=3072), "1024 or 2048"),
        (ModelOptions(NAME + "250615", dimensions=512), "1024 or 2048"),
        (ModelOptions(NAME + "250615", dimensions=0), "1024 or 2048"),
        (ModelOptions(NAME + "250328", sparse=True), "not return sparse"),
        (ModelOptions(NAME + "250615", instructions="x"), "not accept instructions"),
        (ModelOptions(NAME + "250615", instructions=""), "not accept instructions"),
        (ModelOptions("ep-1", like="250615", instructions="x"), "not accept instructions"),
        (ModelOptions(NAME + "250615", instructions=InstructionOptions("corpus")), "not accept instructions"),
        (ModelOptions(NAME + "250615", dimensions=16**5_000), "1024 or 2048"),
        (ModelOptions(NAME + "250615", multi_embedding="zstd"), "not return per-token vectors"),
        (ModelOptions(NAME + "250615", video=VideoSampling(fps=1.0)), "not accept video sampling"),
    ],
)
def test_what_the_model_cant_do_is_refused(options: ModelOptions, rule: str) -> None:
    """The message has the model and the rule."""
    with pytest.raises(ConfigError) as caught:
        check_options(options)
    assert options.name in str(caught.value)
    assert rule in str(caught.value)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (ModelOptions(NAME + "251215", instructions="a\ud800"), "model.instructions"),
        (ModelOptions(NAME + "251215", video=VideoSampling(fps=0.1)), "model.video.fps"),
        (ModelOptions(NAME + "251215", video=VideoSampling(min_frames=4)), "model.video.min_frames"),
        (ModelOptions(NAME + "251215", video=VideoSampling(max_video_tokens=204_801)), "model.video.max_video_tokens"),
        (ModelOptions(NAME + "250615", allow=("instructions", "vision")), "model.allow"),
        (ModelOptions("ep-1", like="250615", allow=("dimensions",)), "model.allow"),
    ],
)
def test_what_no_model_takes_is_refused_by_key(options: ModelOptions, key: str) -> None:
    """The message has the key and can be printed."""
    with pytest.raises(ConfigError) as caught:
        check_options(options)
    assert key in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("capability", ALLOWABLE)
def test_what_the_user_insists_on_passes(capability: str) -> None:
    """Without `model.allow` the message proposes it; with it, the capability can be used and a note says so."""
    asked = {
        "sparse": ModelOptions("ep-1", like="250328", sparse=True),
        "instructions": ModelOptions("ep-1", like="250328", instructions="x"),
        "video_sampling": ModelOptions("ep-1", like="250328", video=VideoSampling(fps=1.0)),
        "multi_embedding": ModelOptions("ep-1", like="250328", multi_embedding="zstd"),
    }[capability]
    with pytest.raises(ConfigError, match=f"list {capability} in model.allow"):
        check_options(asked)
    caps = check_options(replace(asked, allow=(capability,)))
    assert getattr(caps, capability)
    assert sum(getattr(caps, name) for name in ALLOWABLE) == 1
    assert capability in caps.notes[-1]


def test_allowing_what_is_there_changes_nothing() -> None:
    """A capability that the version has anyway needs no note."""
    assert find_capabilities(ModelOptions(NAME + "251215", allow=ALLOWABLE)) is VERSIONS["251215"]


@pytest.mark.parametrize(
    ("name", "asked", "sent", "stored", "published"),
    [
        ("251215", None, None, 2048, 2048),
        ("251215", 1024, 1024, 1024, 1024),
        ("250615", 2048, 2048, 2048, 2048),
        ("250328", None, None, 2048, 2048),
        ("250328", 2048, None, 2048, 2048),
        ("250328", 1024, None, 2048, 1024),
        ("250401", 1024, None, 2048, 1024),
        ("241215", None, None, 3072, 3072),
        ("270101", 1024, 1024, 1024, 1024),
    ],
)
def test_dimensions_as_sent_stored_and_published(
    name: str, asked: int | None, sent: int | None, stored: int, published: int
) -> None:
    """From 250615 on the service returns the requested length; for 250328 the field is not sent and vectors are cut."""
    options = ModelOptions(NAME + name, dimensions=asked)
    caps = check_options(options)
    assert dimensions_sent(options, caps) == sent
    assert dimensions_stored(options, caps) == stored
    assert dimensions_published(options, caps) == published


def test_words_of_yaml_that_are_values_are_read_as_words() -> None:
    """YAML's null means JSON null and its off means `off`; the default encoding is base64."""
    assert ModelOptions("m").encoding_format is EncodingFormat.BASE64
    assert ModelOptions("m", encoding_format=None).encoding_format is EncodingFormat.NULL
    assert ModelOptions("m", multi_embedding=False).multi_embedding == "off"
    assert [ModelOptions("m", multi_embedding=mode).asks_multi for mode in (False, "off", "plain", "zstd")] == [
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ModelOptions(NAME + "251215"), ["advises against"]),
        (ModelOptions(NAME + "251215", instructions="x"), []),
        (ModelOptions(NAME + "251215", instructions=InstructionOptions("corpus")), []),
        (ModelOptions(NAME + "250615"), []),
        (ModelOptions(NAME + "260301", instructions="x"), ["is unknown"]),
        (ModelOptions(NAME + "260301"), ["is unknown", "advises against"]),
        (ModelOptions(NAME + "250328"), ["no longer"]),
        (ModelOptions(NAME + "250615", instructions="x", allow=("instructions",)), ["model.allow"]),
        (ModelOptions(NAME + "251215", instructions="x", multi_embedding="plain"), ["reply_bytes_max"]),
        (ModelOptions(NAME + "251215", instructions="x", multi_embedding="zstd"), ["reply_bytes_max"]),
    ],
)
def test_notes_tell_what_the_user_should_know(options: ModelOptions, words: list[str]) -> None:
    """There are warnings about default instructions, unknown or withdrawn versions, `model.allow` and large replies."""
    told = list_notes(options, check_options(options))
    assert len(told) == len(words)
    assert all(word in note for word, note in zip(words, told, strict=True))


@pytest.mark.parametrize(("version", "context"), [("250328", 8_192), ("250615", 131_072), ("251215", 131_072)])
def test_context_is_exceeded_by_text_and_images_together(version: str, context: int) -> None:
    """The context length itself is allowed; one more text or image token is too much."""
    caps = VERSIONS[version]
    assert not exceeds_context(TokenEstimate(context - 100, 100), caps)
    assert exceeds_context(TokenEstimate(context - 100, 101), caps)
    assert exceeds_context(TokenEstimate(context - 99, 100), caps)


@pytest.mark.parametrize(
    ("options", "dimensions"),
    [
        (ModelOptions(NAME + "241215"), 3072),
        (ModelOptions(NAME + "250328"), 2048),
        (ModelOptions(NAME + "250615", sparse=True), 2048),
        (ModelOptions(NAME + "250615", dimensions=1024), 1024),
        (ModelOptions(NAME + "251215", dimensions=2048, sparse=True, instructions=""), 2048),
        (ModelOptions(NAME + "270101", instructions="x"), 2048),
    ],
)
def test_what_the_model_can_do_passes(options: ModelOptions, dimensions: int) -> None:
    """Supported options pass, and the length of the vectors is known."""
    assert dimensions_stored(options, check_options(options)) == dimensions


@pytest.mark.parametrize(
    ("request_", "version", "code"),
    [
        (Request(()), "251215", "input_empty"),
        (Request((VIDEO,)), "250328", "video_unsupported"),
        (Request((TEXT, TEXT)), "250328", "too_many_parts"),
        (Request((IMAGE, TEXT, IMAGE)), "250328", "too_many_parts"),
        (Request((TEXT,), instructions="x"), "250615", "instructions_unsupported"),
        (Request((TEXT,), sparse=True), "250328", "sparse_unsupported"),
        (Request((TEXT, IMAGE), sparse=True), "251215", "sparse_needs_text_only"),
        (Request((SAMPLED,)), "250615", "sampling_unsupported"),
        (Request((TEXT, SAMPLED)), "251215", None),
        (Request((TEXT, IMAGE)), "250328", None),
        (Request((IMAGE,)), "241215", None),
        (Request((TEXT, TEXT), instructions="x", sparse=True), "251215", None),
        (Request((VIDEO, IMAGE, TEXT, VIDEO, IMAGE)), "250615", None),
    ],
)
def test_request_is_held_against_the_model(request_: Request, version: str, code: str | None) -> None:
    """A request that the model does not support gets a stable failure code."""
    failure = find_misfit(request_, VERSIONS[version])
    assert (failure.code if failure else None) == code


def test_cost_is_split_as_it_is_billed() -> None:
    """Text and image tokens have different prices; the contract's example has 31 and 497."""
    assert cost_cny(31, 497, VERSIONS["250615"]) == pytest.approx(31 * 0.7e-6 + 497 * 1.8e-6)
    assert cost_cny(0, 0, VERSIONS["250615"]) == 0


def test_options_and_capabilities_survive_pickling() -> None:
    """Beam pickles them for the workers."""
    built = ModelOptions(NAME + "251215", instructions=InstructionOptions("corpus"), video=VideoSampling(fps=1.0))
    for value in (ModelOptions(NAME + "250615", 1024, True), built, VERSIONS["251215"]):
        assert pickle.loads(pickle.dumps(value)) == value


def test_the_accounts_prices_replace_the_vendors() -> None:
    """Each price can be set alone; the other stays the vendor's."""
    caps = find_capabilities(ModelOptions(NAME + "251215", prices=PriceOptions(image_cny_per_million=0.5)))
    assert (caps.price_text_cny_per_million, caps.price_image_cny_per_million) == (0.7, 0.5)
    assert cost_cny(1_000_000, 2_000_000, caps) == pytest.approx(1.7)


@pytest.mark.parametrize("price", [-0.1, float("nan"), float("inf")])
def test_what_is_no_price_is_refused(price: float) -> None:
    """The message has the key."""
    with pytest.raises(ConfigError, match=r"model\.prices\.text_cny_per_million"):
        PriceOptions(text_cny_per_million=price)
