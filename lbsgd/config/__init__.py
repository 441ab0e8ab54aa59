"""The machinery of config keys."""
