"""Probes measure how much of a downstream task an encoder's embeddings solve: linear, MLP and nearest neighbours.

Probes see embeddings only, never the encoder's weights. To compare encoders, accuracy is scaled to *accuracy kept* = (A
− A₀)/(A_F − A₀). A_F is the accuracy of the clean encoder, and A₀ that of the better baseline: raw pixels, or the same
architecture at random initialisation.

All randomness comes from seeds in the arguments; global random state is neither read nor set.
"""

from sslguard.probes.baselines import Baseline, PixelEmbedder, accuracy_kept, baseline, raw_pixels
from sslguard.probes.evaluate import PROBES, few_label_subset, probe_encoder
from sslguard.probes.knn import knn_probe
from sslguard.probes.linear import linear_classifier, linear_probe
from sslguard.probes.mlp import mlp_probe
from sslguard.probes.task import ProbeResult

__all__ = [
    "PROBES",
    "Baseline",
    "PixelEmbedder",
    "ProbeResult",
    "accuracy_kept",
    "baseline",
    "few_label_subset",
    "knn_probe",
    "linear_classifier",
    "linear_probe",
    "mlp_probe",
    "probe_encoder",
    "raw_pixels",
]
