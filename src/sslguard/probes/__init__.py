"""Probes measure how much of a downstream task an encoder's embeddings solve: linear, MLP and nearest neighbours.

Probes see embeddings only, never the encoder's weights. To compare encoders, accuracy is scaled to *accuracy kept* = (A
− A₀)/(A_F − A₀). A_F is the accuracy of the clean encoder, and A₀ that of the better baseline: raw pixels, or the same
architecture at random initialisation.

All randomness comes from seeds in the arguments; global random state is neither read nor set.
"""
