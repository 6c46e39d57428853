"""`python -m sslguard.cli`: the command line where no script is installed."""

from sslguard.cli.entry import main

if __name__ == "__main__":
    raise SystemExit(main())
