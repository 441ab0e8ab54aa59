"""What the rest stands on: errors, text, files, devices, processes, signals, progress."""
