"""Answers when: update index, examples seen, epochs; batch sizes and learning rates over time."""
