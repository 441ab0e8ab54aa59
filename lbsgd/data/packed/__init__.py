"""lbsgd's own form of a set of images."""
