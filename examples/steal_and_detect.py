"""Steal a marked encoder through its answers, and test the copy beside a copy of the clean encoder.

    python examples/steal_and_detect.py [STEPS]

The copies are networks of another architecture. More steps give better copies, and more evidence.
"""

import sys

import sslguard

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 120
data = "cluttered-mnist-5k:train"

scheme = sslguard.Exact(sslguard.Protocol(n_queries=500), mode="head")
marked = sslguard.watermark("shipped:simclr", f"{data}[0:1000]", scheme=scheme)

# The thief asks for embeddings of images of his own, and trains a network to answer alike.
recipe = sslguard.Distillation(architecture="resnet-narrow", loss="centred", steps=steps, batch_size=32)
stolen = sslguard.steal(marked.encoder, f"{data}[1000:1800]", recipe=recipe)
innocent = sslguard.steal("shipped:simclr", f"{data}[1000:1800]", recipe=recipe)

for name, suspect in {"copy of the marked encoder": stolen, "copy of the clean encoder": innocent}.items():
    verdict = sslguard.verify(marked.key, suspect, f"{data}[3000:4000]", alpha=1e-6)
    print(f"{name}: {verdict.decision}, {abs(verdict.significance.log2_pvalue):.1f} bits")
