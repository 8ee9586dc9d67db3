"""Quantities in words."""


def format_seconds(seconds: float) -> str:
    """Format a duration: `8.3 s`, `12 min 4 s`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def format_bytes(size: float) -> str:
    """Format a number of bytes: `512 bytes`, `1.4 MB`."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:,.1f} {unit}"
    return f"{size:,.0f} bytes"
