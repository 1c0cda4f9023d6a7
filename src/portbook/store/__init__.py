"""The history: events, and the intervals in which ports were held."""
