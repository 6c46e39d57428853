"""Release an encoder in a secret order, prune a copy of it, and tell the copy by its weights.

    python examples/weights.py

It writes the folder `released` here. Nothing is trained, and nobody is asked anything.
"""

import sslguard

# The units of `released/encoder` stand in an order that the key alone explains. Its answers are those of the original.
sslguard.release("shipped:simclr", out="released")
copy = sslguard.attack("released/encoder", "prune", settings={"amount": 0.9}).encoder

# The second suspect began with the same initial weights, the third is the original that was never published. Without
# the key both look like relatives. By the key, neither comes from the release.
for name, suspect in (("copy", copy), ("same seed", "shipped:moco"), ("original", "shipped:simclr")):
    verdict = sslguard.compare_weights("released/encoder", suspect, key="released/key")
    print(f"{name}: {verdict.decision}, {-verdict.log2_pvalue:.0f} bits (without the key {-verdict.log2_lineage:.0f})")
