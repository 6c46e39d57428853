"""The command line: every command is a thin call of one public function.

`main` is the entry point. Nothing heavy is imported before a command runs, so that `--help` comes at once.
"""

import gc

# Importing makes many objects and no garbage: looking for some takes a fifth of the time of --help.
gc.disable()
from sslguard.cli.entry import main  # noqa: E402

gc.enable()

__all__ = ["main"]
