r"""Instructions by the vendor's templates: a scenario in the config becomes each row's own string.

The vendor's guide gives two templates, in which everything outside the braces stays byte for byte:

    Instruction:Compress the {M} into one word.\nQuery:             what a library of vectors is made of
    Target_modality: {T}.\nInstruction:{I}\nQuery:                what is looked for in it, and all other tasks

{M} is what this one row is made of. {T} is what the *library* is made of, whatever the query is; {I} is the task in
words. Clustering, classification and STS (semantic textual similarity) use one string for all of their data.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from arkbeam.base.errors import ConfigError
from arkbeam.base.records import Failure, Modality

Scenario = Literal["corpus", "query", "clustering", "classification", "sts"]

SCENARIOS: tuple[Scenario, ...] = ("corpus", "query", "clustering", "classification", "sts")
WORDINGS = ("text", "image", "video", "text and image", "text and video", "image and video")
"""All that the vendor has words for: what one sample is made of. Text, image and video together is not among them."""

_BY_MODALITIES = {frozenset(map(Modality, wording.split(" and "))): wording for wording in WORDINGS}


@dataclass(frozen=True, slots=True)
class InstructionOptions:
    """Instructions built by the vendor's templates: the `model.instructions:` section, where it is no plain text."""

    scenario: Scenario
    """`corpus` for what is searched, `query` for what is looked for; `clustering`, `classification` and `sts` give
    all rows one string."""
    target_modality: str | None = None
    """What the library's samples are made of: `text`, `text and image`, …, several kinds of samples joined by `/`.
    Not with `corpus`, which goes by the row."""
    instruction: str | None = None
    """The task in one line of words. Not with `corpus`."""

    def __post_init__(self) -> None:
        """Raise ConfigError that names the key and the rule."""
        if self.scenario not in SCENARIOS:
            raise ConfigError(f"model.instructions.scenario is {self.scenario!r}; it may be {', '.join(SCENARIOS)}")
        for name in ("target_modality", "instruction"):
            value = getattr(self, name)
            if self.scenario == "corpus" and value is not None:
                raise ConfigError(
                    f"model.instructions.{name} is not for scenario corpus, whose template has no such part"
                )
            if self.scenario != "corpus" and value is None:
                raise ConfigError(f"model.instructions.{name} is missing: scenario {self.scenario} needs it")
        if self.target_modality is not None:
            _check_target(self.target_modality)
        if self.instruction is not None:
            _check_instruction(self.instruction)


def _check_target(target: str) -> None:
    kinds = target.split("/")
    for kind in kinds:
        if kind not in WORDINGS:
            raise ConfigError(
                f"model.instructions.target_modality has {kind[:100]!r}; the vendor's words are {', '.join(WORDINGS)},"
                " joined by / without spaces where the library has several kinds of samples"
            )
    if len(set(kinds)) < len(kinds):
        raise ConfigError(f"model.instructions.target_modality {target!r} names a kind twice")


def _check_instruction(instruction: str) -> None:
    if not instruction.strip():
        raise ConfigError("model.instructions.instruction is empty: say the task in words")
    if instruction.splitlines() != [instruction]:
        raise ConfigError("model.instructions.instruction must be one line: line ends belong to the vendor's template")
    check_utf8("model.instructions.instruction", instruction)


def check_utf8(key: str, text: str) -> None:
    """Raise ConfigError for a text that can't be sent: one with a lone surrogate, which YAML can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{key} is not valid Unicode: it holds a lone surrogate") from None


def build_instructions(options: InstructionOptions, modalities: Collection[Modality]) -> str | Failure:
    """Build the instructions of a row whose own parts are of these modalities, by the vendor's templates.

    Fails with code `no_wording` for the scenario `corpus` on a row for which the vendor has no words.
    """
    if options.scenario != "corpus":
        return f"Target_modality: {options.target_modality}.\nInstruction:{options.instruction}\nQuery:"
    wording = _BY_MODALITIES.get(frozenset(modalities))
    if wording is None:
        made_of = " and ".join(kind for kind in Modality if kind in modalities)
        return Failure(
            "no_wording",
            f"the vendor has no corpus instruction for {made_of or 'nothing'} in one row:"
            " give it one of its own (body.instructions, manifest.columns.instructions) or make model.instructions a text",
        )
    return f"Instruction:Compress the {wording} into one word.\nQuery:"
