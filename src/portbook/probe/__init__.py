"""Asking one port: over TCP, over UDP."""
