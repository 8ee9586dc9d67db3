"""Gather: bring the elements of several PCollections together in one element."""

from collections.abc import Iterable
from typing import Any, TypeVar

import apache_beam as beam
from apache_beam.pvalue import PCollection

_T = TypeVar("_T")


class Gather(beam.PTransform):
    """All elements of a tuple of PCollections as one list, without order; no list if there is no element.

    The list is made when the inputs are complete, so what follows runs after everything before. The elements get their
    key before they are joined: engines in Java do not translate a PCollection that a Flatten shares with another
    consumer, and each copy here has one consumer.
    """

    def expand(self, collections: Any) -> PCollection[list[Any]]:
        """Group under one key."""
        keyed = [one | f"Key{number}" >> beam.Map(_with_key) for number, one in enumerate(collections)]
        together = keyed | beam.Flatten() if len(keyed) > 1 else keyed[0]
        return together | beam.GroupByKey() | "List" >> beam.MapTuple(_without_key)


def only(kind: type[_T], elements: Iterable[Any]) -> list[_T]:
    """Return the elements of a type."""
    return [element for element in elements if isinstance(element, kind)]


def _with_key(element: Any) -> tuple[int, Any]:
    return 0, element


def _without_key(_: int, elements: Iterable[Any]) -> list[Any]:
    return list(elements)
