"""How devices exchange gradients: all-reduces by name, their cost, 16-bit exchange."""
