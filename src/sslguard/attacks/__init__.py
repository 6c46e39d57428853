"""What an attacker does to an encoder: stealing it through its answers, or removing its mark from the weights."""
