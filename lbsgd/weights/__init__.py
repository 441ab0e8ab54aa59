"""Weights of trained networks: of other libraries' names and layouts, in files, matched to ours."""
