"""Options of suspects and victims behind an address, and what commands say about them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Group

from sslguard.cli.chosen import Chosen, Source, options_of
from sslguard.errors import UsageError
from sslguard.files import read_plain
from sslguard.suspects.names import PREFIXES
from sslguard.suspects.settings import Remote

if TYPE_CHECKING:
    from sslguard.suspects.remote import RemoteSuspect

REMOTE = Group("Encoder behind an address", sort_key=1)
MAX_BODY = 1 << 20  # bytes


@options_of(Source(Remote(), REMOTE, without=("patience",)))
class RemoteOptions(Chosen):
    """What the user chose of the settings for asking an address."""

    def check(self, spec: str) -> None:
        """Raise UsageError if these options do not go with `spec`, or name a body that cannot be read."""
        if self.remote() is not None and not spec.startswith(PREFIXES):
            raise UsageError("--protocol is for suspects behind an http:// or https:// address")

    def words(self) -> list[str]:
        """Return the options that were given as a command line has them."""
        found = []
        for name, value in vars(self).items():
            option = name.replace("_", "-")
            if isinstance(value, bool):
                found.append(f"--{option}" if value else f"--no-{option}")
            elif value is not None:
                found += [f"--{option}", str(value)]
        return found

    def remote(self) -> Remote | None:
        """Return what `open_suspect` takes, or None where no option was given."""
        table = self.table()
        if "body" in table:
            table["body"] = _content(table["body"])
        return Remote(**table) if table else None


DEFAULT_REMOTE = RemoteOptions()


@contextmanager
def opened(spec: str, options: RemoteOptions) -> Iterator[RemoteSuspect | str]:
    """Yield the suspect at an address and close it afterwards; yield any other specification as it is.

    Raises:
        UsageError: Options came without an address, or nothing tells the address's protocol.
    """
    from sslguard.suspects.opening import open_suspect
    from sslguard.suspects.remote import RemoteSuspect

    how = options.remote()
    if how is None and not spec.startswith(PREFIXES):
        yield spec
        return
    found = open_suspect(spec, how)
    assert isinstance(found, RemoteSuspect)
    with found:
        yield found


def remote_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return lines for people from `RemoteSuspect.report`."""
    cost = f", cost {report['cost']:g}" if report["cost"] else ""
    cached = f", {report['n_cached']} from the cache" if report["n_cached"] else ""
    rows = [
        ("asked", f"{report['n_asked']} queries in {report['n_requests']} requests{cached}{cost}"),
        ("unanswered", f"{report['n_missing']} queries, counted as zero"),
    ]
    for label, found in (("asked again", "again"), ("twice at the end", "again_twice")):
        if (agreement := report[found]) is not None:
            rows.append(
                (
                    label,
                    f"{agreement['n_equal']} of {agreement['n']} the same, else 1 - cosine up to "
                    f"{agreement['worst']:.2g}",
                )
            )
    if report["n_changed"]:
        rows.append(("changed", f"{report['n_changed']} answers: another model may answer now"))
    return rows


def _content(body: str) -> str:
    """Return a body as it stands, or the content of the file behind an @."""
    if not body.startswith("@"):
        return body
    try:
        return read_plain(Path(body[1:]), MAX_BODY, UsageError).decode()
    except (UnicodeDecodeError, UsageError) as error:
        raise UsageError(f"--body @FILE must name a file of JSON: {error!s:.300}") from error
