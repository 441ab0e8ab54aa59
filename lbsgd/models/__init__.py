"""Networks by name, their normalisation, and the roles of their parameters."""
