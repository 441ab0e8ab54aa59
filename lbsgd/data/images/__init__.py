"""Image files and pixels: decoding, resizing, encoding."""
