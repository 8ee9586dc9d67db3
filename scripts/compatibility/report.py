"""Tables of readers and columns, in Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scripts.compatibility.read import ALL, OK

Outcomes = dict[str, dict[str, str]]
"""By reader, then by line of the table."""


@dataclass(slots=True)
class Notes:
    """Numbered notes under tables; equal ones have one number."""

    texts: list[str] = field(default_factory=list)

    def cell(self, outcome: str) -> str:
        """Return the cell for an outcome: `ok` or `no`, with the number of its note."""
        if outcome == OK:
            return OK
        remark = outcome.removeprefix(f"{OK}, ")
        if remark not in self.texts:
            self.texts.append(remark)
        return f"{'no' if remark == outcome else OK} ({self.texts.index(remark) + 1})"

    def lines(self) -> str:
        """Return the notes as a numbered list."""
        return "\n".join(f"{number}. {text}" for number, text in enumerate(self.texts, 1))


def join_folders(found: Sequence[tuple[str, Mapping[str, str]]]) -> dict[str, str]:
    """Join what one reader found in the folders of an output, by the names that the lines of the table have."""
    return {
        f"all of `{folder}/`"
        if name == ALL
        else f"`{name}`"
        if folder == "embeddings"
        else f"`{folder}/…/{name}`": outcome
        for folder, outcomes in found
        for name, outcome in outcomes.items()
    }


def make_table(head: str, outcomes: Outcomes, notes: Notes) -> str:
    """Return a table with a column for each reader. Columns with the same cells share a line, those with only `ok` the last."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for name in next(iter(outcomes.values())):
        lines.setdefault(tuple(notes.cell(found[name]) for found in outcomes.values()), []).append(name)
    all_ok = (OK,) * len(outcomes)
    right = lines.pop(all_ok, [])
    named = [name for name in right if name.startswith("all of")]
    if named:
        right = [*named, f"{len(right) - len(named)} other columns"]
    rows = [
        f"| {', '.join(names)} | {' | '.join(cells)} |" for cells, names in [*lines.items(), (all_ok, right)] if names
    ]
    return "\n".join([f"| {head} | {' | '.join(outcomes)} |", "|---" * (len(outcomes) + 1) + "|", *rows])
