"""How a listing is written: one callable for each format, in a table."""
