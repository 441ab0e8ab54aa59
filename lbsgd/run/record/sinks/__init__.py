"""Where metrics go besides metrics.jsonl: a file for each kind of sink, and one that guards all."""
