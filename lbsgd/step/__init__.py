"""Answers what: one synchronous update, as pure functions."""
