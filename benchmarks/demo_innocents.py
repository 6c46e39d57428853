"""How often does the demonstration accuse an innocent? Its decisions on its innocents, under fresh secrets.

Each secret gives a new key of the scheme exact and a new secret order of the clean encoder's units. The demonstration's
innocents are then asked as there, at the same level, and their weights are compared with the release. No copy is made:
what innocents answer does not depend on one.

Run: python benchmarks/demo_innocents.py [--secrets 20]
"""

from __future__ import annotations

from common import options, prepare, save

from sslguard import api
from sslguard.bench.work import remembering
from sslguard.crypto.secrets import Secret
from sslguard.data.specs import open_data
from sslguard.demo.settings import DemoSettings
from sslguard.demo.suspects import innocents
from sslguard.encoders.base import Encoder, embed_all
from sslguard.encoders.load import load_encoder
from sslguard.lineage.order import released
from sslguard.lineage.verdict import compare
from sslguard.lineage.weights import open_weights
from sslguard.report.markdown import table
from sslguard.schemes.exact.features import all_statistics

MARKING_ITEMS = 2000


def main() -> None:
    given = options(__doc__, secrets=20)
    prepare()
    settings = DemoSettings.here()
    level = {"alpha": settings.alpha, "n_claims": settings.n_tests}
    asked, marking = open_data(settings.roles.verify), open_data(settings.roles.mark).slice(0, MARKING_ITEMS)
    clean = load_encoder(settings.encoder)
    answers, statistics = embed_all(clean, marking), all_statistics(clean, marking)
    known = remembering(clean, asked)
    tested = {one.name: one.embedder for one in innocents(settings.innocents)}
    tested = {name: load_encoder(one) if isinstance(one, str) else one for name, one in tested.items()}
    tested = {name: remembering(one, asked) if isinstance(one, Encoder) else one for name, one in tested.items()}
    largest = {name: {"answers": 0.0, "weights": 0.0} for name in tested}
    accused = 0
    for seed in range(1, given.secrets + 1):
        secret = Secret.from_seed(seed)
        key = settings.scheme.draw_key(known, secret, answers, statistics)
        release = released(clean, secret, marking.take(range(2)))
        for name, one in tested.items():
            verdict = api.verify(key, one, asked, **level)
            found = {"answers": verdict.significance.log2_pvalue}
            derived = verdict.exit_code == 0
            if isinstance(one, Encoder):
                lineage = compare(open_weights(release.encoder), open_weights(one), order=release.order, **level)
                found["weights"], derived = lineage.log2_pvalue, derived or lineage.exit_code == 0
            accused += derived
            for test, log2_pvalue in found.items():
                largest[name][test] = max(largest[name][test], abs(log2_pvalue))
    rows = [[name, *most.values()] for name, most in largest.items()]
    print(table(["innocent", "answers, most bits", "weights, most bits"], rows))
    n = given.secrets * len(tested)
    print(f"accused: {accused} of {n}")
    save("demo_innocents", {"secrets": given.secrets, "decisions": n, "accused": accused, "most bits": largest})


if __name__ == "__main__":
    main()
