"""Where events go: logs, collectors, receivers, commands."""
