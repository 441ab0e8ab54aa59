"""Takes metrics elsewhere than to metrics.jsonl: a file for each sink, and one that guards all."""
