"""Options out of a TOML file: `--config run.toml`, for any command.

The file holds a table for each command, `[watermark]` or `[attack.prune]`, with its arguments and options by name. What
stands on the command line goes before what stands in the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection, Token
from cyclopts.config import Dict

from sslguard.errors import UsageError
from sslguard.files import located
from sslguard.settings import load_toml


def options_from_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill in what the file that --config names says of a command, as cyclopts asks for it.

    Raises:
        UsageError: The file cannot be read, or holds no table for this command.
        CycloptsError: The command has no such option.
    """
    asked = arguments.get("--config", None)
    if asked is None or not asked.tokens:
        return
    path = Path(located(asked.tokens[0].value))
    found: Any = load_toml(path)
    for name in commands:
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise UsageError(f"{path} has no table [{'.'.join(commands)}]: put the options of this command into one")
    if "config" in found:
        raise UsageError(f"{path}: a configuration file cannot name another one; leave config out")
    given = dict(found)
    for argument in arguments:
        # cyclopts itself fills in options alone, and an argument is one too to whoever writes a file.
        name = argument.field_info.name
        value = given.pop(name, None) if argument.field_info.is_positional_only else None
        if value is not None and not argument.tokens:
            argument.append(Token(value=str(value), source=str(path)))
    Dict(data=given, source=str(path), use_commands_as_keys=False)(app, commands, arguments)
