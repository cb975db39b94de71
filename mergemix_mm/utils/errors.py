"""Errors whose message is all that a user needs: tools end with it instead of a traceback."""


class DataError(ValueError):
    """Something in the data cannot be used; the message is one line and begins with its file and line."""
