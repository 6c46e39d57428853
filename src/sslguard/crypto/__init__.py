"""Secrets and what is drawn from them, and encryption of keys at rest."""
