"""Demonstrations on real data in minutes: mark an encoder, steal it, show the theft, and accuse no innocent.

Everything is computed during the run, except encoders that come with the package or the test bed.
"""
