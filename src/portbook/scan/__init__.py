"""Asking many ports at once."""
