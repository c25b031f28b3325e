"""Exceptions by their old path."""


class DeprecatedException(Exception):
    """A feature that no longer exists was asked for."""
