"""Which example stands at each position of the run, and how its pixels get to the devices."""
