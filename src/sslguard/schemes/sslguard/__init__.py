"""SSLGuard: a trigger and a decoder that turn the watermarked encoder's answers towards a secret vector.

Source: Cong, He and Zhang, "SSLGuard: A Watermarking Scheme for Self-supervised Learning Pre-trained Encoders", CCS
2022.

Paper's symbols: F clean encoder, F* watermarked, S shadow, G decoder, T trigger, M mask, D_v verification images,
sk secret vector, c̄ mean cosine over a batch, x a plain batch, x' a triggered one: x' = clip((1 − M)·x + M·T, 0, 1).
WR, the watermark rate, is the share of D_v with cos(G(E(x')), sk) > ½.

The paper gives no null distribution and no rule that turns a WR into a decision. Here a suspect is ranked among
controls, by its mean cosine (WR is reported beside it: at 1.00 it ties, and a tie decides nothing). That
p-value is as good as the choice of controls and never below 1/(n + 1).

What it does not protect against: as published the decoder also claims surrogates of the clean encoder and even
random networks, and surrogates of F* inherit nothing. `negatives` adds controls to training, which the paper does not
do; `SSLGuard.cured()` marks by other losses (`CuredTask`), made for both.
"""
