"""Starts processes, and brings them together to one run."""
