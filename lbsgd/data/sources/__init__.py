"""Data sources: folders, archives, arrays, tensorflow-datasets."""
