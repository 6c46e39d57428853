"""Demonstrations on real data in minutes: mark an encoder, steal it, show the theft, and accuse no innocent.

Everything is computed during the run except the controls, which come with the test bed; marking never used them. The
paper's published losses run beside the cured ones under the same secret, so that their false claims can be seen.
"""
