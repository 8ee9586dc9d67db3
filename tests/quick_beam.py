"""Beam looks up the same options and signatures a thousand times for each small pipeline, which is half of the CPU of a test's run.

`remember` lets it look up each of them once: views of options are views of the same dictionary, and a function's parameters do not
change. Runs that start cold, as `start_cold` in `tests.places` starts them, have Beam as it is.
"""

import types
import weakref
from collections.abc import Callable
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core


def remember() -> None:
    """Replace Beam's two look-ups by ones that remember, for this process."""
    PipelineOptions.view_as = _remember_views(PipelineOptions.view_as)
    core.get_function_args_defaults = _remember_parameters(core.get_function_args_defaults)


def _remember_views(make_view: Callable[..., Any]) -> Callable[..., Any]:
    views: weakref.WeakKeyDictionary[Any, dict[type, Any]] = weakref.WeakKeyDictionary()

    def view_as(options: Any, kind: type) -> Any:
        known = views.setdefault(options, {})
        if kind not in known:
            known[kind] = make_view(options, kind)
        return known[kind]

    return view_as


def _remember_parameters(inspect: Callable[..., Any]) -> Callable[..., Any]:
    known: weakref.WeakKeyDictionary[Any, tuple[list[str], list[Any]]] = weakref.WeakKeyDictionary()

    def get_function_args_defaults(function: Any) -> tuple[list[str], list[Any]]:
        if not isinstance(function, types.MethodType):
            return inspect(function)
        if function.__func__ not in known:
            known[function.__func__] = inspect(function)
        names, defaults = known[function.__func__]
        return [*names], [*defaults]

    return get_function_args_defaults
