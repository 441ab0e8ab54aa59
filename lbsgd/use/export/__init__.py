"""Exports trained networks to the files that other libraries and servers read."""
