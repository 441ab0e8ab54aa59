"""What a run shows and leaves behind: metrics, checkpoints, log, curves, result."""
