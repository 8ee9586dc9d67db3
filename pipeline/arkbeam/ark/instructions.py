r"""Build the instructions of each row from the vendor's templates and the scenario in the config.

The vendor's guide has two templates. All text outside the braces must be kept byte for byte:

    Instruction:Compress the {M} into one word.\nQuery:      for the corpus: the samples that are searched
    Target_modality: {T}.\nInstruction:{I}\nQuery:          for queries and all other tasks

{M}: the modalities of this row. {T}: the modalities of the corpus samples, not of the query. {I}: the task in words.
The second template gives the same string for all rows; with clustering, classification and STS (semantic textual
similarity), all samples use it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from arkbeam.base.errors import ConfigError
from arkbeam.base.records import Failure, Modality

Scenario = Literal["corpus", "query", "clustering", "classification", "sts"]

SCENARIOS: tuple[Scenario, ...] = ("corpus", "query", "clustering", "classification", "sts")
WORDINGS = ("text", "image", "video", "text and image", "text and video", "image and video")
"""The combinations of modalities for which the vendor has a wording. Text, image and video together has none."""

_BY_MODALITIES = {frozenset(map(Modality, wording.split(" and "))): wording for wording in WORDINGS}


@dataclass(frozen=True, slots=True)
class InstructionOptions:
    """Instructions built from the vendor's templates.

    The `model.instructions:` section, if it is not a plain string.
    """

    scenario: Scenario
    """`corpus`: the samples that are searched; `query`: the queries for that corpus; `clustering`, `classification` and
    `sts`: those tasks, with one string for all rows."""
    target_modality: str | None = None
    """Modalities of the corpus samples: `text`, `text and image`, …; several kinds of samples are joined by `/`.
    Required, except with `corpus`, where it is not allowed: the modalities of each row are used."""
    instruction: str | None = None
    """The task, in words and on one line. Required, except with `corpus`, where it is not allowed."""

    def __post_init__(self) -> None:
        """Raise ConfigError, with the key and the rule, for invalid options."""
        if self.scenario not in SCENARIOS:
            raise ConfigError(
                f"model.instructions.scenario is {self.scenario!r}; it must be one of {', '.join(SCENARIOS)}"
            )
        for name in ("target_modality", "instruction"):
            value = getattr(self, name)
            if self.scenario == "corpus" and value is not None:
                raise ConfigError(
                    f"model.instructions.{name} is not allowed with scenario corpus, whose template does not use it"
                )
            if self.scenario != "corpus" and value is None:
                raise ConfigError(f"model.instructions.{name} is missing: scenario {self.scenario} requires it")
        if self.target_modality is not None:
            _check_target(self.target_modality)
        if self.instruction is not None:
            _check_instruction(self.instruction)


def _check_target(target: str) -> None:
    kinds = target.split("/")
    for kind in kinds:
        if kind not in WORDINGS:
            raise ConfigError(
                f"model.instructions.target_modality contains {kind[:100]!r}; allowed are {', '.join(WORDINGS)}"
                " (join several kinds of corpus samples with / without spaces)"
            )
    if len(set(kinds)) < len(kinds):
        raise ConfigError(f"model.instructions.target_modality {target!r} names a kind twice")


def _check_instruction(instruction: str) -> None:
    if not instruction.strip():
        raise ConfigError("model.instructions.instruction is empty: describe the task in words")
    if instruction.splitlines() != [instruction]:
        raise ConfigError(
            "model.instructions.instruction must be one line: line breaks are part of the vendor's template"
        )
    check_utf8("model.instructions.instruction", instruction)


def check_utf8(key: str, text: str) -> None:
    """Raise ConfigError for a text that can't be sent as UTF-8, because YAML escapes put a lone surrogate into it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{key} is not valid Unicode: it contains a lone surrogate") from None


def name_targets(modalities: Collection[Modality]) -> str:
    """Return the `target_modality` for samples that have one or more of these modalities."""
    return "/".join(wording for kinds, wording in _BY_MODALITIES.items() if kinds <= set(modalities))


def build_instructions(options: InstructionOptions, modalities: Collection[Modality]) -> str | Failure:
    """Return the instructions of a row whose parts have these modalities, built from the vendor's templates.

    Return a Failure with code `no_wording` for the scenario `corpus` if the vendor has no wording for these modalities.
    """
    if options.scenario != "corpus":
        return f"Target_modality: {options.target_modality}.\nInstruction:{options.instruction}\nQuery:"
    wording = _BY_MODALITIES.get(frozenset(modalities))
    if wording is None:
        made_of = " and ".join(kind for kind in Modality if kind in modalities)
        return Failure(
            "no_wording",
            f"the vendor has no corpus instruction for {made_of or 'no parts'} in one row:"
            " set instructions for the row (body.instructions, manifest.columns.instructions) or a string in model.instructions",
        )
    return f"Instruction:Compress the {wording} into one word.\nQuery:"
