"""arkbeam: manifests of text, images and video in, vectors from Volcengine Ark out, as Parquet.

The command line is `arkbeam` (`arkbeam.app.cli`); README.md holds the architecture, `tests/test_layers.py` the order of the modules.
"""

__version__ = "0.1.0"
