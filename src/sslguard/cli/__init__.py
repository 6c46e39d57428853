"""The command line: every command is a thin call of one public function.

`main` is the entry point. Nothing heavy is imported before a command runs, so that `--help` comes at once.
"""

from sslguard.cli.entry import main

__all__ = ["main"]
