"""One connection: what a probe is, and how a TCP port is probed."""
