"""Attacks on encoders: steal by asking, remove a mark from the weights, wrap or map the answers, or chain several."""
