"""Where examples come from: folders, archives, arrays, tensorflow-datasets."""
