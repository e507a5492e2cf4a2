"""`python -m baleen`: the command `baleen`, where it is not on the path."""

from baleen.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
