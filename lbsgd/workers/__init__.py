"""Answers where: how k workers lie on devices, lanes and steps, and how they exchange."""
