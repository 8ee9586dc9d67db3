"""The garbage collector of Python, for stages that make many objects and no cycles."""

import functools
import gc


@functools.cache
def relax_collector() -> None:
    """Make Python look for garbage cycles less often, from the first call in a process on.

    Rows and requests are many objects without cycles, which are freed without the collector. With Python's defaults, it
    took 40 % of the CPU of reading a text row, and a quarter of that of sending one.
    """
    gc.collect()
    gc.freeze()  # the objects that exist at this point, mostly Beam's modules, stay until the process ends
    gc.set_threshold(50_000, 20, 50)
