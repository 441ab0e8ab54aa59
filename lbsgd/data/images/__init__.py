"""Pixels: decoding, resizing, encoding."""
