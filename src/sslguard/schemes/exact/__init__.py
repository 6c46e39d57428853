"""The scheme whose p-value is a theorem: a mark along secret directions, and evidence with a known law.

`Exact` marks, `ExactKey` tests. Notation, proof and what defeats it: docs/explanation/theory.md.
"""
