"""How answers are written, one module for each answer: as text for people, and in formats for programs."""
