"""arkbeam turns manifests of text, images and video into vectors through Volcengine Ark, and writes them as Parquet.

The command line is `arkbeam` (`arkbeam.app.cli`). `pipeline/README.md` describes the architecture. `tests/test_layers.py` has
the order in which modules may import each other.
"""

__version__ = "0.1.0"
