"""Answers which: finds the example at each position of a run, brings its pixels to the devices."""
