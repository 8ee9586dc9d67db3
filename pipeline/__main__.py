"""`python -m pipeline` is `arkbeam`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
