"""From a config to a run: its parts, how they are explained, evaluated and recorded."""
