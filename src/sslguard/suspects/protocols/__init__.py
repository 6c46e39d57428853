"""Protocols: ways of asking a server for embeddings."""

from sslguard.suspects.protocols.base import IncompleteReplyError, MalformedReplyError, Protocol
from sslguard.suspects.protocols.oip import OIP
from sslguard.suspects.protocols.openai import TEI, OpenAI
from sslguard.suspects.protocols.template import Template

__all__ = ["OIP", "TEI", "IncompleteReplyError", "MalformedReplyError", "OpenAI", "Protocol", "Template"]
