"""Schemes of others, rebuilt from their papers, for the benchmark: what this package is compared with."""
