"""A cache for two look-ups of Beam, which are half of the CPU time of a run in the tests.

For each small pipeline, Beam looks up the same options and signatures about a thousand times. With `cache_lookups` it looks up
each once. This is safe: views of options share one dictionary, and the parameters of a function do not change. Runs that
`start_cold` of `tests.places` starts use Beam unchanged.
"""

import types
import weakref
from collections.abc import Callable
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core


def cache_lookups() -> None:
    """Replace the two look-ups by cached ones, for this process."""
    PipelineOptions.view_as = _cache_views(PipelineOptions.view_as)
    core.get_function_args_defaults = _cache_parameters(core.get_function_args_defaults)


def _cache_views(make_view: Callable[..., Any]) -> Callable[..., Any]:
    views: weakref.WeakKeyDictionary[Any, dict[type, Any]] = weakref.WeakKeyDictionary()

    def view_as(options: Any, kind: type) -> Any:
        known = views.setdefault(options, {})
        if kind not in known:
            known[kind] = make_view(options, kind)
        return known[kind]

    return view_as


def _cache_parameters(inspect: Callable[..., Any]) -> Callable[..., Any]:
    known: weakref.WeakKeyDictionary[Any, tuple[list[str], list[Any]]] = weakref.WeakKeyDictionary()

    def get_function_args_defaults(function: Any) -> tuple[list[str], list[Any]]:
        if not isinstance(function, types.MethodType):
            return inspect(function)
        if function.__func__ not in known:
            known[function.__func__] = inspect(function)
        names, defaults = known[function.__func__]
        return [*names], [*defaults]

    return get_function_args_defaults
