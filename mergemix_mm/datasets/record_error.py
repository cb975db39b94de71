"""The error of one unusable record: what `on_error` decides about."""


class RecordError(ValueError):
    """A record cannot be used; the message begins with its file and line.

    Datasets raise it for malformed turns or missing images, transforms for what shows only later (all answers cut off
    by ``max_length``). With ``on_error='skip'`` such records are counted and replaced; anything else stops the run.
    """
