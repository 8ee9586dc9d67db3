"""Give a task to a worker process (`decoding.workers`), and turn its end into a failure of the row."""

from typing import Any, NoReturn

from arkbeam.base.bad_rows import fail_row
from arkbeam.decoding import workers
from arkbeam.decoding.ranges import Reader


def look(
    task: str, facts: dict[str, Any], data: bytes, look_s: float, *, code: str = "", read: Reader | None = None
) -> tuple[dict[str, Any], bytes]:
    """Do a task within `look_s` seconds of CPU time; return its answer and bytes.

    Raise BadRow: with the code of the task, `media_too_slow`, or `code` if decoding fails; without `code`, the answer
    then has an `error`.
    """
    try:
        answer, packed = workers.ask(task, facts, data, cpu_s=look_s, read=read)
    except workers.TooSlow:
        fail_too_slow(f"it takes more than {look_s:g} s of CPU time")
    except workers.Crashed as error:
        answer, packed = {"error": f"the decoder crashed: {error}"}, b""
    if "code" in answer:
        fail_row(answer["code"], answer["message"])
    if code and "error" in answer:
        fail_row(code, f"the image can't be decoded: {answer['error']}")
    return answer, packed


def fail_too_slow(reason: str) -> NoReturn:
    """Raise BadRow for a medium that would hold up the run."""
    fail_row("media_too_slow", f"looking at the medium takes too long: {reason} (media.look_s)")
