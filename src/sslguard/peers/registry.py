"""Peers by name."""

from __future__ import annotations

from collections.abc import Mapping

from sslguard.peers.base import Peer
from sslguard.peers.dataset_inference import DatasetInference
from sslguard.peers.embmarker import EmbMarker, Warden
from sslguard.peers.fingerprint import Fingerprint
from sslguard.peers.rotation import Rotation
from sslguard.peers.wet import Wet

_ALL = (DatasetInference, EmbMarker, Warden, Wet, Fingerprint, Rotation)
PEERS: Mapping[str, type[Peer]] = {peer.name: peer for peer in _ALL}
