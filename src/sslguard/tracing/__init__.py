"""Tracing: which recipient's copy a suspect was made from."""
