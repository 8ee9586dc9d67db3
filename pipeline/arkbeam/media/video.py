"""Look at a video without decoding it: how long it is, and if it has frames that the service could see.

The index of an mp4 or mov, at its start or its end, is read from its boxes, that of an avi from its header. Of what these
do not tell, PyAV (the extra `video`) is asked in a worker process. Few bytes are read for it, and none of the frames.
"""

from importlib.util import find_spec
from typing import Any

from arkbeam.base.bad_rows import fail_row
from arkbeam.decoding.ranges import RangedFile, Reader
from arkbeam.media.boxes import ENCRYPTED, Film, read_avi, read_boxes
from arkbeam.media.kinds import AVI, Kind
from arkbeam.media.looking import look

DURATION_S_MAX = 24 * 3600.0
"""A longer duration in a header is not trusted and counts as unknown."""


def examine_film(head: bytes, size: int, kind: Kind, read: Reader, look_s: float) -> float | None:
    """Return a video's duration in seconds; None if it is unknown.

    `head` are the first of its `size` bytes. Further bytes are fetched with `read`, at most 8 MiB in 64 calls. If `read`
    raises, the exception is raised again: the video can't be read from its storage. Raise BadRow for a video without
    frames: `media_not_video` (sound alone, no frames), `media_encrypted`, `media_truncated` (the index alone), and
    `media_too_slow`.
    """
    film = _read_index(head, size, kind, read)
    if film is not None:
        _check(film, size, kind)
    if film is not None and film.duration_s is not None:
        return _trust(film.duration_s)
    if find_spec("av") is None:
        return None
    found, _ = look("film", {"size": size, "container": "avi" if kind is AVI else "mov"}, head, look_s, read=read)
    if not found.get("frames", True):
        fail_row("media_not_video", f"this is {kind.mime} without a frame of video")
    return _trust(found.get("duration_s"))


def _trust(duration_s: Any) -> float | None:
    return duration_s if duration_s is not None and 0 < duration_s <= DURATION_S_MAX else None


def _read_index(head: bytes, size: int, kind: Kind, read: Reader) -> Film | None:
    file = RangedFile(head, size, read)
    try:
        return read_avi(file) if kind is AVI else read_boxes(file, size)
    except OSError:
        if file.fault is not None:
            raise file.fault from None
        return None


def _check(film: Film, size: int, kind: Kind) -> None:
    """Raise BadRow if no frame of the film can be shown."""
    videos = [track for track in film.tracks if track.is_video]
    if not videos:
        handlers = ", ".join(sorted({(track.handler or b"?").decode("latin-1") for track in film.tracks}))
        fail_row("media_not_video", f"this is {kind.mime} without a video track; its tracks are: {handlers}")
    if all(track.codec in ENCRYPTED for track in videos):
        fail_row("media_encrypted", "the video is encrypted, so that the service can't see its frames")
    if not film.has_frames:
        fail_row("media_truncated", "truncated: the file holds only the index of a video, and none of its frames")
    if film.fragmented:
        return
    if all(track.frames == 0 for track in videos):
        fail_row("media_not_video", f"this is {kind.mime}, and its video track has no frames")
    if all((track.first_byte or 0) >= size for track in videos):
        fail_row("media_truncated", "truncated: by its index, the first frame is behind the end of the file")
