"""An encoder as a server. It is the reference that remote suspects are tested against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslguard.errors import required_by

if TYPE_CHECKING:
    from sslguard.encoders.base import Encoder
    from sslguard.serve.app import Settings
    from sslguard.serve.recipients import Recipients
    from sslguard.serve.server import Server

__all__ = ["open_server"]


def open_server(
    encoder: Encoder,
    settings: Settings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    recipients: Recipients | None = None,
) -> Server:
    """Return a server of `encoder` that has taken its address. Its `run` answers requests.

    Args:
        encoder: Encoder to serve.
        settings: Settings of the server; None takes the defaults.
        host: Address to listen on.
        port: Port to listen on; 0 takes any free one.
        recipients: Those whose answers are marked, each by his own mark; nobody else is answered. None marks nothing.

    Raises:
        UsageError: The address cannot be taken.
        MissingExtraError: fastapi or uvicorn is not installed.
    """
    with required_by("serving an encoder", "serve"):
        from sslguard.serve.app import create_app
        from sslguard.serve.server import Server
    return Server(create_app(encoder, settings, recipients), host=host, port=port)
