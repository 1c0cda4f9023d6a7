"""Watching ports: what opens, what fails to, what ends, and whether it is allowed."""
