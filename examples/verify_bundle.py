"""Check a bundle that `sslguard claim` wrote, with numpy, scipy and the standard library alone.

It shares no code with sslguard. After docs/reference/key-format.md and docs/explanation/theory.md it recomputes hashes,
secrets, all witnesses, both p-values, and the bits that are left after all charges. Exit code 0: that is what the claim
says; 1: it is not, so that the bundle was changed or forged; 3: this program cannot tell, as of labels.

F's embeddings and statistics of inputs come from clean.npy: the audit compares them with F. Signatures are not checked.
Names: h clean embeddings along the bank's axes (n, q); g answers (n, m), t with columns of deviation 1, u with rows of
length 1; psi functions of the input (n, B), phi their mixtures by A (n, r). Secrets A (B, r), G (r, q). Rows: centred.
"""

import argparse
import base64
import hashlib
import hmac
import json
import math
from pathlib import Path

import numpy as np
from numpy.linalg import LinAlgError, norm, qr, solve, svd
from scipy.linalg import eigh
from scipy.special import betainc, betaln, gammaln, logsumexp, ndtri

RANK, ROUNDING = 1e-6, 1e-10  # deviations below this share of the largest, and correlations below this, are rounding
TOLERANCE = 0.05  # of bits, relative, as of the audit: another machine rounds differently


def need(condition, words, code=1):
    if not condition:
        print(f"{'disagrees' if code == 1 else 'not checkable'}: {words}")
        raise SystemExit(code)


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def spelled(value, separators=None):
    return json.dumps(value, sort_keys=True, separators=separators, allow_nan=False).encode()


def normals(secret, name, context, *shape):
    seed = hmac.digest(secret, sha(context) + name.encode(), "sha256")
    words = np.frombuffer(hashlib.shake_256(seed + bytes(8)).digest(8 * math.prod(shape)), ">u8") >> np.uint64(12)
    return ndtri((words + 0.5).reshape(shape) / 2.0**52)


def secrets(fields, bank):
    """Return A and G, drawn from the secret and bound to F, its description, the protocol and the whole bank."""
    described = spelled(fields["clean"]["preprocess"]) + spelled(fields["clean"]["architecture"])
    context = fields["clean_hash"].encode() + sha(spelled(fields["protocol"])) + described
    public = [spelled([name, [*array.shape]]) + b"\n" + array.tobytes() for name, array in sorted(bank.items())]
    bound = context + fields["redraw"].to_bytes(8, "big") + sha(*public)
    secret, r, left, right = bytes.fromhex(fields["secret"]), fields["protocol"]["rank"], [], []
    for number in range(1, fields["sub_keys"] + 1):
        one = hmac.digest(secret, sha(context) + b"sub-key %d" % number, "sha256") if fields["sub_keys"] > 1 else secret
        left += [normals(one, "left", bound, len(bank["weights"]), r)]
        right += [normals(one, "right", bound + sha(left[-1].tobytes()), r, len(bank["axes"]))]
    return np.hstack(left), np.vstack(right)


def tested(g):
    """Return the kind of the answers, and what is tested: the numbers, or of shares their centred logarithms."""
    given, kind = g[g.any(1)], "embeddings"
    scaled = ((10.0**-k, given[:512] * 10.0**k) for k in range(1, 6))
    unit = next((size for size, x in scaled if abs(x - np.round(x)).max(initial=0) < 1e-6 / size), 0.0)
    named, sums, slack = (given > 0).sum(1), given.sum(1), 1e-4 + g.shape[1] * unit / 2
    shares = g.shape[1] > 1 and len(given) and given.min() >= 0 and given.max() <= 1
    whole = g.shape[1] == 1 and (g == np.round(abs(g))).all() and len(np.unique(g)) > 1
    labels = whole or (shares and (named == 1).all() and (given.max(1) == 1).all())
    need(not labels, "the answers are labels, whose regression on h it does not repeat", 3)
    top = shares and named.min() == named.max() < g.shape[1] and (sums <= 1 + slack).all()
    if top or (shares and (abs(sums - 1) <= slack).all()):
        rest = np.maximum(1 - g.sum(1, keepdims=True), 0) / np.maximum((g <= 0).sum(1, keepdims=True), 1)
        logs = np.log(np.maximum(np.where(g <= 0, rest, g), max(unit / 2, 1e-12) if unit else 5e-5))
        kind, g = "probabilities", (logs - logs.mean(1, keepdims=True)) * g.any(1, keepdims=True)
    if g.shape[1] > 1024:  # the leading components, by a range finder with a public start
        start = np.random.default_rng(g.shape[1]).standard_normal((g.shape[1], 1024), dtype=np.float32)
        x = ((g - g.mean(0)) / (abs(g).max() or 1)).astype(np.float32)
        g = g @ qr((x.T @ (x @ start)).astype(float))[0]
    return kind, g


def cov(x, y):
    return x.T @ y / len(x)


def length_one(x):
    return x / np.maximum(norm(x, axis=1, keepdims=True), 1e-300)


def principal(x, least, most=None):
    """Return variances, falling, and principal axes, in columns, of deviations above a share of the largest."""
    values, axes = eigh(cov(x, x))
    keep = values[::-1] > max(least**2 * values[-1], 0)
    return values[::-1][keep][:most], axes[:, ::-1][:, keep][:, :most]


def real(difference, rows, columns):
    """Return a difference of terms of these sizes, or 0 if it is only rounding."""
    return difference * (abs(difference) > ROUNDING * np.outer(rows, columns)).any()


def ridged(matrix, ridge, x):
    return solve(matrix + (ridge * np.diag(matrix).mean() or 1) * np.eye(len(matrix)), x)


class Suspect:
    """What is tested of answers. Left witnesses see neither secret; right ones see A, through phi, and not G."""

    def __init__(self, bank, answers, clean):
        h = length_one(clean[:, : (d := len(bank["mean"]))])
        placed, self.spread, (self.kind, g) = h @ bank["axes"].T, bank["spread"], tested(answers)
        psi = (clean[:, d:] - bank["centre"]) @ bank["mixing"] - (h - bank["mean"]) @ bank["axes"].T @ bank["linear"]
        self.own = self.kind == "embeddings" and answers.shape[1] == d
        u = length_one(answers) @ bank["axes"].T if self.own else length_one(g)
        rows = (placed, psi, g, u)  # a constant column becomes 0, whatever its mean rounds to
        self.h, self.psi, self.g, self.u = ((x - x[0]) - (x - x[0]).mean(0) for x in rows)
        self.t = self.g / np.where(self.g.any(0), self.g.std(0), 1)
        values, axes = principal(self.h, RANK)
        self.basis = self.h @ (axes / np.sqrt(values * len(h)))

    def beyond(self, x):
        """Return what of x is not linear in (1, h)."""
        return x - self.basis @ (self.basis.T @ x)

    def left(self):
        """Return S (B, k) by name: which of the functions psi the answers know beyond (1, h)."""
        f, g, found = self.beyond(self.psi), self.g, {}
        values, vectors = eigh(cov(f, f))
        inverse, root = (vectors / np.maximum(values, 0.01 * values[-1])) @ vectors.T, np.sqrt(np.maximum(values, 0))
        for ridge, top in ((0.02, None), (0.5, None), (0.1, 24))[: 2 + (g.shape[1] > 24)]:
            x, kept = (g, f"{top} components") if top else (self.t, "all components")
            sizes, axes = principal(x, RANK, top)
            b = np.zeros((len(values), max(1, len(sizes))))  # the regression of the whitened answers on f
            enough = len(sizes) + len(values) < len(x)  # else some mixtures of answers and f are equal, whoever answers
            if enough and real(cov(f, x), self.psi.std(0), x.std(0)).any():
                z = self.beyond(x @ (axes / np.sqrt(sizes)))
                noise, turn = eigh(cov(z, z))
                white = inverse @ (cov(f, z) @ turn / np.sqrt(abs(noise) + ridge * abs(noise).mean() + 1e-300))
                order = svd((vectors * root).T @ white, full_matrices=False)[2]  # by canonical correlation
                b[:, : len(order)] = white @ order.T
            for k in (2, 4, 8)[: 1 + (g.shape[1] > 3) + (g.shape[1] > 7)]:
                found[f"{kept}, ridge {ridge:g}, {k} directions"] = self.shrunk(b, min(k, b.shape[1]))
        return found

    def shrunk(self, b, k):
        """Return the first k columns, orthonormal: posterior means, gain and noise constant over eight bands."""
        behind, out = min(8, b.shape[1] // 2), np.zeros((len(b), k))
        noise = (b[:, behind:] ** 2).mean(1) if b.shape[1] > behind + 1 else b[:, -1] ** 2
        edges = np.unique(np.round(np.geomspace(1, len(b) + 1, 9)).astype(int) - 1)
        for band in map(slice, edges[:-1], edges[1:]):
            least = noise[band].mean() + 1e-300
            signal = np.maximum((b[band, :k] ** 2).mean(0) - least, 0.02 * least)
            out[band] = b[band, :k] * np.sqrt(signal) / (signal + least)
        return qr(out)[0] if out.any() else out

    def right(self, phi):
        """Return factors of V (r, q) by name: where in h's space the answers carry the functions phi."""
        h, g, t, u, spread = self.h, self.g, self.t, self.u, self.spread
        f, back, gram, found = self.beyond(phi), 1 / (spread + 0.3 * spread.mean()), cov(phi, phi), {}
        on_u, on_g = real(cov(f, u), phi.std(0), u.std(0)), real(cov(f, g), phi.std(0), g.std(0))
        if self.own:
            found["own_space"] = on_u, np.diag(back)
            moved = u - np.trace(cov(u, h)) / np.trace(cov(h, h)) * h
            found["difference"] = ridged(gram, 0.3, real(cov(phi, moved), phi.std(0), u.std(0))), np.diag(back)
            found["own_whitened"] = ridged(cov(u, u), 0.1, on_u.T).T, np.diag(spread)
        values, axes = principal(h, RANK, min(128, g.shape[1]))
        clean, size = h @ axes, math.sqrt(np.trace(cov(u, u)))
        x = self.in_turns(cov(u, clean), cov(u, phi), cov(clean, phi), values, gram, size)
        found["leading"] = x[:, :24], axes.T[:24]
        left, sizes, right = svd(cov(u, h), full_matrices=False)
        keep = sizes > RANK**2 * sizes[0]
        found["procrustes"] = on_u @ left[:, keep], right[keep] * back
        values, axes, (sizes, vectors) = values[:64], axes[:, :64], eigh(cov(t, t))
        undo = (vectors * (np.maximum(sizes, 0) + (0.03 * sizes.mean() or 1)) ** -0.4) @ vectors.T
        clean, size = h @ axes / np.sqrt(values), math.sqrt(len(undo)) * abs(undo).max()
        x = self.in_turns(undo @ cov(t, clean), undo @ cov(t, phi), cov(clean, phi), np.ones(len(values)), gram, size)
        found["mapped"] = x * values**0.25, axes.T
        values, axes = principal(h, 1e-3)
        white = axes / np.sqrt(values)
        fit = cov(h @ white, g)
        noise, vectors = eigh(cov(g, g) - fit.T @ fit)
        keep = noise > max(1e-8 * noise[-1], RANK**2 * np.trace(cov(g, g)))
        weights = vectors[:, keep] / (noise[keep] + 0.1 * noise[keep].sum() / max(1, keep.sum()))
        found["whitened"] = on_g @ weights @ vectors[:, keep].T, fit.T @ (white.T * spread)
        return found

    def in_turns(self, gh, gf, hf, variances, gram, size):
        """Return X (r, k) of g R = h D + phi X with a rotation R and gains D, from covariances, fitted by turns."""
        gains, x = np.ones(len(variances)), np.zeros((len(gram), len(variances)))
        for _ in range(12):
            left, _, right = svd(gh * gains + gf @ x, full_matrices=False)
            gains = np.maximum((((left @ right) * gh).sum(0) - (x.T * hf).sum(1)) / variances, 0)
            x = ridged(gram, 0.3, real(gf.T @ (left @ right) - gains * hf.T, np.sqrt(np.diag(gram)), size))
        return x


def left_bits(s, a):
    """Return log2 p of a left witness: a share for each column of A, the tails combined by Fisher."""
    a = a / norm(a, axis=0)
    shares = zip(((s.T @ a) ** 2).sum(0), ((a - s @ (s.T @ a)) ** 2).sum(0), strict=True)
    return fisher([tail(inside, outside, *s.shape) for inside, outside in shares]) if s.any() else 0.0


def right_bits(left, right, secret):
    """Return log2 p of a right witness: the tail of its cosine with G in the range that its rows can lie in."""
    v = real(left @ right, norm(left, axis=1), norm(right, axis=0))
    if not v.any():
        return 0.0
    _, sizes, rows = svd(right, full_matrices=False)
    u, v = (x / norm(x) for x in (x @ rows[sizes > RANK * sizes[0]].T for x in (secret, v)))
    cosine = (u * v).sum()
    half = tail(cosine**2, ((v - cosine * u) ** 2).sum(), u.size, 1) - 1
    return half if cosine >= 0 else math.log2(1 - 2.0**half)


def tail(share, rest, dimension, k):
    """Return log2 P(at least this share of a uniform direction lies in k fixed dimensions); rest is 1 - share."""
    a, b, y, total, term, i = (dimension - k) / 2, k / 2, min(max(rest, 1e-32), 1.0), 1.0, 1.0, 0
    if k >= dimension or (found := betainc(a, b, y)) > 1e-250:
        return 0.0 if k >= dimension else math.log2(found)
    while term > 1e-16 * total:  # the series 8.17.8 of the NIST Digital Library of Mathematical Functions
        term, i = term * (a + b + i) / (a + 1 + i) * y, i + 1
        total += term
    log = a * math.log(y) + b * math.log(max(share, 1e-300)) - math.log(a) - betaln(a, b) + math.log(total)
    return float(log) / math.log(2)


def fisher(logs):
    x, k = -sum(logs) * math.log(2), np.arange(len(logs))
    return min(0.0, float(logsumexp(k * math.log(x) - gammaln(k + 1)) - x) / math.log(2)) if x > 0 else 0.0


def read(folder, seed, commitment):
    """Return claim, commitment, bank, answers, and what F gave, after a check of every hash."""
    envelopes = (json.loads((folder / f"{one}.json").read_bytes()) for one in ("claim", "commitment"))
    claim, committed = (json.loads(base64.b64decode(one["payload"]))["predicate"] for one in envelopes)
    key, published = claim["key"], (commitment or folder / "commitment.json").read_bytes()
    need(key["scheme"] == "exact" and "clean" in claim, "it is no claim under an exact key with a file clean.npy", 3)
    wanted = {"answers.npy": claim["answers"]["sha256"], "clean.npy": claim["clean"], "key.safetensors": key["tensors"]}
    for name, digest in {**wanted, "commitment.json": sha(published).hex()}.items():
        need(sha((folder / name).read_bytes()).hex() == digest, f"{name} is not the file that was signed, or published")
    made_for = sha(published).hex(), committed["owner"]
    need((claim["commitment"], claim["owner"]) == made_for, "the claim was made for another commitment or owner")
    need(seed in (None, claim["seed"]), "the queries were drawn by another seed")
    content, bank, hashes = (folder / "key.safetensors").read_bytes(), {}, {}
    start = 8 + int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8:start]).items():
        part = content[start:][slice(*entry["data_offsets"])]
        bank[name.removeprefix("bank.")] = np.frombuffer(part, {"F64": "<f8"}[entry["dtype"]]).reshape(entry["shape"])
        hashes[name] = sha(spelled(["float64", entry["shape"]]), b"\n", part).hex()
    described = {"scheme": key["scheme"], "fields": key["fields"], "tensors": hashes}
    digest = sha(bytes.fromhex(key["salt"]), spelled(described, (",", ":"))).hex()
    need(digest in committed["keys"], "the opened key is not what the commitment commits to")
    answers, clean = (np.load(folder / name, allow_pickle=False).astype(float) for name in ("answers.npy", "clean.npy"))
    least, items = key["fields"]["protocol"]["n_queries"], claim["data"]["items"]
    n = max(least, *(m for k in range(9) for step in (1, 1.5, 2, 3, 5, 7.5) if (m := int(step * 10**k)) <= items))
    need(n == len(answers) == len(clean) <= items, f"{n} queries were to be asked: answers were dropped or added")
    return claim, committed, bank, answers, clean


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder that sslguard claim wrote")
    parser.add_argument("--seed", help="the examiner's, which must have drawn the queries")
    parser.add_argument("--commitment", type=Path, help="file that the examiner saw before giving the seed")
    asked = parser.parse_args()
    need(asked.bundle.is_dir(), f"{asked.bundle} is no folder", 3)
    try:
        claim, committed, bank, answers, clean = read(asked.bundle, asked.seed, asked.commitment)
        fields, said = claim["key"]["fields"], claim["claimed"]["details"]
        suspect, (a, secret) = Suspect(bank, answers, clean), secrets(fields, bank)
        left = {f"left, {name}": left_bits(s, a) for name, s in suspect.left().items()}
        right = suspect.right(suspect.psi @ (bank["weights"][:, None] * a)).items()
        right = {f"right, {name}": min(0.0, right_bits(*pair, secret)) for name, pair in right}
        sides = [min(0.0, min(side.values()) + math.log2(len(side))) for side in (left, right)]  # Bonferroni
        pairs = [(name, log, said[f"log2 p of {name}"]) for name, log in (left | right).items()]
        pairs += [(f"{s} side", log, -said[f"{s}_bits"]) for s, log in zip(("left", "right"), sides, strict=True)]
        pairs += [("both sides", both := fisher(sides), said["log2_pvalue_uncapped"])]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        need(False, f"unreadable: {error!s:.200}", 3 if isinstance(error, LinAlgError | FileNotFoundError) else 1)
    for name, ours, theirs in pairs:
        same = abs(ours - theirs) <= TOLERANCE * max(1, abs(ours))
        print(f"{name}: {abs(ours):.6f} bits; the claim says {abs(theirs):.6f}{'' if same else ', another figure'}")
    need(same, "the arithmetic gives another figure of both sides")
    n, silent, compared = len(answers), int((~answers.astype(np.float32).any(1)).sum()), claim.get("compared", 0)
    fits = type(compared) is int and 0 <= compared <= 2**40 and (compared > 0) == ("recipient" in committed)
    need(fits, "the number of recipients' secrets that were compared is missing, or none that can be")
    tests = compared + 1 if compared else len(committed["keys"]) + ("order" in committed)
    choices = (gammaln(n + 1) - gammaln(silent + 1) - gammaln(n - silent + 1)) / math.log(2)  # of what to leave out
    left = min(256, -both) - math.log2(1 + fields["redraw"]) - math.log2(tests) - choices - 6  # 64 ways of reading
    older, other = (max(0, left - tries) for tries in (20, 64))
    print(f"after charges: {older:.1f} bits if the commitment is shown to be older than the suspect, else {other:.1f}")
    print("agrees: hashes, secrets, witnesses, p-values. Not checked here: signatures, and that clean.npy is F's")


if __name__ == "__main__":
    main()
