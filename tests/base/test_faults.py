"""The documented list of fault points is the list of points in the code."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

from arkbeam.base import faults

PACKAGE = Path(faults.__file__).parents[1]


def documented_points() -> set[str]:
    """The points that the docstring of `base.faults` lists."""
    listed = (faults.__doc__ or "").partition("Points:")[2]
    return set(re.findall(r"\b(?:read|plan|embed|store|publish|commit|compact|file)\.[a-z]+", listed))


def points_in_code() -> set[str]:
    """The points that the package hits, as shell patterns: `commit.*` for an f-string that fills in the name."""
    pattern = re.compile(r'\bfaults\.hit\(f?"([^"]+)"')
    modules = (path.read_text() for path in PACKAGE.rglob("*.py") if path != Path(faults.__file__))
    return {re.sub(r"\{\w+\}", "*", point) for module in modules for point in pattern.findall(module)}


def test_every_documented_point_is_hit() -> None:
    """No documented point is missing in the code: a fault there would never happen."""
    patterns = points_in_code()
    assert documented_points()
    assert [point for point in documented_points() if not any(fnmatchcase(point, each) for each in patterns)] == []


def test_every_point_is_documented() -> None:
    """No point in the code is missing in the documentation."""
    points = documented_points()
    assert [each for each in points_in_code() if not any(fnmatchcase(point, each) for point in points)] == []
