"""Checks of what a command was given, before torch is imported: names, files, options and extras."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sslguard.data.names import check_data
from sslguard.encoders.names import check_encoder
from sslguard.errors import EncoderError, UsageError
from sslguard.schemes.keyfolder import check_key
from sslguard.suspects.names import check_suspect


def check(
    *,
    key: Path | None = None,
    encoders: Iterable[str | None] = (),
    data: Iterable[str | None] = (),
    suspect: str | None = None,
    controls: Iterable[str] | None = None,
) -> None:
    """Raise the error that reading these would raise, as far as it can be known without reading them.

    Args:
        key: Folder of a key.
        encoders: Specifications of encoders; None is left out, here and below.
        data: Specifications of data sets.
        suspect: Specification of a suspect.
        controls: Known innocents: encoders, folders of populations, or "shipped".

    Raises:
        KeyFileError: There is no key.
        UsageError: A specification has no known form, or a control is missing.
        EncoderError: An encoder's file is missing.
        SuspectError: The suspect's file is missing.
        MissingExtraError: Something needs a package that is not installed.
    """
    if key is not None:
        check_key(key)
    for spec in data:
        if spec is not None:
            check_data(spec)
    for spec in encoders:
        if spec is not None:
            check_encoder(spec)
    if suspect is not None:
        check_suspect(suspect)
    for spec in controls or ():
        if spec != "shipped" and not (Path(spec) / "population.json").exists():
            try:
                check_encoder(spec)
            except EncoderError as error:
                raise UsageError(f"a control cannot be used: {error}") from error
