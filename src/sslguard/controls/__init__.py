"""The null population: encoders that nobody derived from the watermarked one, made once and cached.

Three kinds stand in it: independent encoders (self-supervised, supervised, untrained, a public one), and what
innocents make of the *clean* encoders: surrogates by every stealing recipe, fine-tuned and pruned copies. The last
are the hard ones: they agree with F as much as a thief's surrogate agrees with F*.

Every member answers in the same width, so that one key can score them all. What each is worth downstream stands beside
it: a null of useless encoders would resemble no suspect.
"""
