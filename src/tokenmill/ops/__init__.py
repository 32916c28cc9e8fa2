"""Primitives that several methods are sentences of. Each module is imported by name; nothing is re-exported."""
