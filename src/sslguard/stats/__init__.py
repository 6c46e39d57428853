"""Statistics on plain arrays: no torch, no keys, no encoders."""
