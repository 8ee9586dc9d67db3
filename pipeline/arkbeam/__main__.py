"""`python -m arkbeam` is `arkbeam`."""

from arkbeam.app.cli import main

if __name__ == "__main__":
    main()
