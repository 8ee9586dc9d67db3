"""Run the command line: `python -m arkbeam` does the same as `arkbeam`."""

from arkbeam.app.cli import main

if __name__ == "__main__":
    main()
