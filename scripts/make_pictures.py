"""Make the pictures of the report for the README, from a run of the demo.

    .venv/bin/python -m scripts.make_pictures       writes scripts/pictures/*.png

Needs Debian's packages `chromium`, and `fonts-wqy-microhei` or another font with Chinese characters. The pictures show the
times of this run, so they differ from run to run.
"""

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

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


def main() -> int:
    """Run the demo, open its report, write the pictures; return the exit code."""
    program = find_chromium()
    if program is None:
        print("chromium is not installed: apt-get install chromium", file=sys.stderr)
        return 1
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "configs", Path(folder, "configs"))  # so that no picture has a path of the checkout
        command = arkbeam_command("run", "configs/demo.yaml", "--set", "manifest.uris=configs/demo/manifest.jsonl")
        subprocess.run(command, cwd=folder, env=child_environment(), check=True)
        for name, selector, screen in PICTURES:
            seen = look(program, Path(folder, "out", "demo", "report.html"), [screen], selector=selector)
            data = shrink(seen.pictures[0])
            (FOLDER / f"{name}.png").write_bytes(data)
            print(f"{name}.png: {len(data):,} bytes")
            if len(data) > BYTES_MAX:
                print(f"{name}.png has more than {BYTES_MAX:,} bytes", file=sys.stderr)
                return 1
    return 0


def shrink(data: bytes) -> bytes:
    """Return a PNG with few colours, which is much smaller."""
    packed = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").quantize(COLOURS).save(packed, "PNG", optimize=True)
    return packed.getvalue()


if __name__ == "__main__":
    sys.exit(main())
