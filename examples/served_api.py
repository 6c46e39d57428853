"""Serve a marked encoder over HTTP, and verify it by its address alone.

    python examples/served_api.py [QUERIES]

Needs the extra `serve`.
"""

import sys
import threading

import sslguard
from sslguard.serve import open_server

queries = int(sys.argv[1]) if len(sys.argv) > 1 else 200
data = "cluttered-mnist-5k:train"
settings = {"mode": "head", "protocol": {"n_queries": queries}}
marked = sslguard.watermark("shipped:simclr", f"{data}[0:1000]", scheme="exact", settings=settings)

for name, encoder in {"marked": marked.encoder, "clean": sslguard.load_encoder("shipped:simclr")}.items():
    server = open_server(encoder, port=0)
    running = threading.Thread(target=server.run)
    running.start()
    # The address tells the protocol. A real API costs queries: `Remote` has a budget, a rate and a cache.
    with sslguard.open_suspect(f"{server.address}/v2/models/encoder", sslguard.Remote(budget=queries + 20)) as suspect:
        verdict = sslguard.verify(marked.key, suspect, f"{data}[3000:{3000 + queries}]", alpha=1e-6)
        print(f"{name}: {verdict.decision} from {suspect.report()['n_asked']} queries")
    server.stop()
    running.join()
