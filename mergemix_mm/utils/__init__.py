"""Helpers that every part of the package may import, and that import no other part."""
