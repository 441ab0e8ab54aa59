"""Foundations of all other packages: errors, text, files, devices, processes, signals, progress."""
