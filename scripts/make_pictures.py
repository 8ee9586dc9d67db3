"""Make the pictures of the report, of the progress and of a search for the README, from a run of the demo.

    .venv/bin/python -m scripts.make_pictures       writes scripts/pictures/*.png

Needs Debian's packages `chromium`, and `fonts-wqy-microhei` or another font with Chinese characters. The pictures show the
times of this run, so they differ from run to run.
"""

import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from scripts.children import ROOT, arkbeam_command, child_environment
from scripts.chromium import Screen, find_chromium, look

FOLDER = ROOT / "scripts" / "pictures"
COLOURS = 255
BYTES_MAX = 200_000
# The name of each picture, the element at its top, and its screen.
PICTURES = (
    ("report", "body", Screen("report", 1_080, 660)),
    ("report-neighbours", "#neighbours", Screen("neighbours", 1_080, 620)),
    ("report-map-dark", "#map", Screen("map", 1_080, 900, dark=True)),
    ("report-phone", "#pace", Screen("phone", 375, 720)),
)
COLUMNS, LINE_PX = 80, 18
TERMINAL = f"""<!DOCTYPE html><meta charset="utf-8"><style>
body {{{{ margin: 0; color: {{foreground}}; background: {{background}} }}}}
pre {{{{ margin: 0; padding: 12px; font: 14px/{LINE_PX}px "DejaVu Sans Mono", "WenQuanYi Micro Hei Mono", monospace }}}}
</style><pre>{{code}}</pre>"""
# What a terminal obeys when the display is drawn again: go up and clear the line.
_AGAIN = re.compile(r"(?:\r?\x1b\[(?:1A|2K))+")
# So slow that the display can be seen at work.
_SLOW = ("--set", "quota.rpm=600", "--set", "emulator.latency_ms=400", "--set", "output.report=false")


def main() -> int:
    """Run the demo, open its report, write the pictures; return the exit code."""
    program = find_chromium()
    if program is None:
        print("chromium is not installed: apt-get install chromium", file=sys.stderr)
        return 1
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "configs", Path(folder, "configs"))  # so that no picture has a path of the checkout
        demo = ("run", "configs/demo.yaml", "--set", "manifest.uris=configs/demo/manifest.jsonl")
        subprocess.run(arkbeam_command(*demo), cwd=folder, env=child_environment(), check=True)
        good = True
        for name, selector, screen in PICTURES:
            seen = look(program, Path(folder, "out", "demo", "report.html"), [screen], selector=selector)
            good &= save(name, seen.pictures[0])
        query = ["search", "out/demo", "red circle", "-k", "5", "--where", "price < 20"]
        good &= save(
            "search", draw_terminal(program, query, _AGAIN.split(type_command(folder, query))[-1], Path(folder))
        )
        slow = [*demo, *_SLOW, "--set", "store.uri=out/slow/store", "--set", "output.uri=out/slow"]
        frames = _AGAIN.split(type_command(folder, slow))
        frame = [one for one in frames if "of the RPM" in one][-8]  # about a second before the end
        good &= save("progress", draw_terminal(program, ["run", "configs/demo.yaml"], frame, Path(folder)))
    return 0 if good else 1


def save(name: str, data: bytes) -> bool:
    """Write a picture, made smaller. Return False if it is too large all the same."""
    data = shrink(data)
    (FOLDER / f"{name}.png").write_bytes(data)
    print(f"{name}.png: {len(data):,} bytes")
    return len(data) <= BYTES_MAX


def type_command(folder: str, arguments: list[str]) -> str:
    """Run `arkbeam` in a terminal of 80 columns; return all that it prints, with colours and movements of the cursor."""
    terminal, theirs = pty.openpty()
    environment = child_environment(COLUMNS=str(COLUMNS), TERM="xterm-256color")
    process = subprocess.Popen(
        arkbeam_command(*arguments), cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    data = b""
    try:
        while block := os.read(terminal, 1 << 16):
            data += block
    except OSError:  # on Linux, that is how the end is told
        pass
    os.close(terminal)
    if process.wait():
        raise SystemExit(f"arkbeam {' '.join(arguments)} failed:\n{data.decode(errors='replace')}")
    return data.decode()


def draw_terminal(program: str, arguments: list[str], printed: str, folder: Path) -> bytes:
    """Return a picture of a command and of what it printed in a terminal."""
    words = [f'"{word}"' if " " in word else word for word in arguments]
    text = Text.from_ansi(printed.replace("\r\n", "\n").strip("\n"))
    console = Console(record=True, file=io.StringIO(), width=COLUMNS, force_terminal=True)
    console.print(Text(f"$ arkbeam {' '.join(words)}", "bold"), soft_wrap=True)
    console.print(text)
    lines = console.export_text(clear=False).count("\n")
    path = folder / "terminal.html"
    path.write_text(console.export_html(theme=MONOKAI, code_format=TERMINAL, inline_styles=True))
    return look(program, path, [Screen("terminal", 710, 24 + LINE_PX * lines, scale=1.5)]).pictures[0]


def shrink(data: bytes) -> bytes:
    """Return a PNG with few colours, which is much smaller."""
    packed = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").quantize(COLOURS).save(packed, "PNG", optimize=True)
    return packed.getvalue()


if __name__ == "__main__":
    sys.exit(main())
