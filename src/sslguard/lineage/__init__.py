"""Evidence from weights: whether two networks of one architecture share initial weights, and a secret order of units.

`compare` holds the test, `order` the secret order of a released encoder, `groups` which units may change places.
docs/explanation/lineage.md has the null hypothesis, the proof and what breaks it.
"""
