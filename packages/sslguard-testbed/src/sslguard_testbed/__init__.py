"""Known innocents for the encoders that sslguard ships: 107 networks and their accuracies, and no code.

`sslguard` reads the folder `controls` of this package wherever a user names the controls `shipped`.
"""
