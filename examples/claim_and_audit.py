"""Claim that a suspect was derived from your encoder, and check the claim as a neutral examiner does.

    python examples/claim_and_audit.py [QUERIES]

It writes the folders `marked` and `bundle` and the file `commitment.json` here.
"""

import sys

import sslguard

queries = int(sys.argv[1]) if len(sys.argv) > 1 else 500
data = "cluttered-mnist-5k:train"
settings = {"mode": "head", "protocol": {"n_queries": queries}}

# The owner marks the encoder, and publishes a commitment to the key before the encoder. It hides the key. The key is
# bound to the pool that claims will ask about, so that nobody can say that the owner chose images to fit the key.
sslguard.watermark(
    "shipped:simclr", f"{data}[0:1000]", pool=f"{data}[3000:4000]", out="marked", scheme="exact", settings=settings
)
sslguard.commit("marked/key", "commitment.json")

# In a dispute the examiner has seen the commitment and chooses a seed, which draws the queries.
seed = "the examiner chose this"
sslguard.claim(
    "marked/key", "marked/encoder", f"{data}[3000:4000]", seed=seed, commitment="commitment.json", out="bundle"
)

# The examiner gets the bundle and the clean encoder, and believes nothing that the owner computed. No timestamp dates
# this commitment, so the audit assumes that up to 2^64 keys were tried.
found = sslguard.audit("bundle", f"{data}[3000:4000]", seed=seed, clean="shipped:simclr", commitment="commitment.json")
for check in found.checks:
    print(f"{check.name}: {check.status}")
print(f"decision: {found.decision}")
