"""Can I have this port, and if not, why not."""
