"""Which: global position -> example, and the way of its pixels to the devices."""
