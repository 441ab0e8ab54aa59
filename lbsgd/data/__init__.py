"""Which: finds the example at each position of the run, and brings its pixels to the devices."""
