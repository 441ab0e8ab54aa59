"""Where: how k workers lie on devices, lanes and accumulation steps, and how they exchange."""
