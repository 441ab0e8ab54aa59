"""How far a batch can grow: gradient noise scale, gradient confusion, norms of each layer."""
