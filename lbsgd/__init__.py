"""lbsgd: train networks with large minibatches, exactly and on any number of devices."""

__version__ = "0.1.0"
