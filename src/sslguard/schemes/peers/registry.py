"""Peers by name."""

from __future__ import annotations

from collections.abc import Mapping

from sslguard.schemes.peers.base import Peer
from sslguard.schemes.peers.dataset_inference import DatasetInference
from sslguard.schemes.peers.embmarker import EmbMarker, Warden
from sslguard.schemes.peers.fingerprint import Fingerprint
from sslguard.schemes.peers.rotation import Rotation
from sslguard.schemes.peers.wet import Wet

_ALL = (DatasetInference, EmbMarker, Warden, Wet, Fingerprint, Rotation)
PEERS: Mapping[str, type[Peer]] = {peer.name: peer for peer in _ALL}
