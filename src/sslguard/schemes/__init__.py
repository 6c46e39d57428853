"""Schemes: how encoders are marked, and what a suspect's answers are worth under a key."""
