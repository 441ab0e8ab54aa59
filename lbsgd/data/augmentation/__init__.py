"""Augmentation by name: lbsgd's own and anyone else's come through one door."""
