"""What an attacker does to an encoder: stealing it through its answers, removing its mark from the weights, wrapping
it so that its answers blur; and several of these in a row."""
