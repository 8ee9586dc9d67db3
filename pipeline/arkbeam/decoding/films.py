"""The task of a worker process that opens a film with PyAV."""

from typing import Any

from arkbeam.decoding.ranges import BLOCK_BYTES, RangedFile, Reader


def examine(head: bytes, read: Reader, *, size: int, container: str) -> dict[str, Any]:
    """Return what PyAV finds in a film: its duration, and `frames`, false if it has streams but no frame of video.

    Empty if PyAV can't open the film.
    """
    import av  # noqa: PLC0415 (the extra `video`)

    file = RangedFile(head, size, read)
    probing = {"probesize": str(BLOCK_BYTES), "analyzeduration": "0"}  # only the container matters here, not the codecs
    try:
        with av.open(file, "r", container, options=probing) as opened:
            duration_s = None if opened.duration is None else opened.duration / av.time_base
            frames = not len(opened.streams)
            if opened.streams.video:
                frames = any(packet.size for packet in opened.demux(video=0))
            return {"duration_s": duration_s, "frames": frames}
    except (av.FFmpegError, OSError, ValueError, OverflowError, UnicodeDecodeError):
        if file.fault is not None:
            raise file.fault from None
        return {}
