"""Mark a pre-trained encoder of images, then test the marked encoder and the clean one.

    python examples/mark_and_verify.py [QUERIES]

It writes the folder `marked` here. More queries give more evidence. The images are digits on a cluttered ground; a
folder of your own images, such as "photos/", does as well.
"""

import sys

import sslguard

queries = int(sys.argv[1]) if len(sys.argv) > 1 else 300
data = "cluttered-mnist-5k:train"

# The scheme "exact" has an exact p-value and needs no known innocents. Its mode "head" computes the mark from the
# encoder's output, for an encoder that you serve. The mode "distilled" trains the mark into weights that you publish.
settings = {"mode": "head", "protocol": {"n_queries": queries}}
sslguard.watermark("shipped:simclr", f"{data}[0:1000]", out="marked", scheme="exact", settings=settings)

# Keep marked/key as you keep a private key. The queries are images that took no part in marking. At this level one
# innocent encoder in a million is called derived.
for suspect in ("marked/encoder", "shipped:simclr"):
    verdict = sslguard.verify("marked/key", suspect, f"{data}[3000:4000]", alpha=1e-6)
    print(f"{suspect}: {verdict.decision}, p = {verdict.significance.pvalue:.2g}")
