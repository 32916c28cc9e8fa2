"""The loops: each one readable page."""
