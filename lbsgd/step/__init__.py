"""What: one synchronous update, as pure functions."""
