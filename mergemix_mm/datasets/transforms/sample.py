"""What the encoding transforms share: the data sample of a record, and the token that pads."""

from typing import Any

from mmpretrain.structures import DataSample


def data_sample(fields: dict[str, Any]) -> DataSample:
    """A data sample with these fields, but for names that a DataSample has itself."""
    sample = DataSample()
    for key, value in fields.items():
        if not hasattr(DataSample, key):
            sample.set_field(value, key)
    return sample


def pad_token_id(tokenizer) -> int:
    """What pads the tokens: the padding token, or the end token, or 0."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in ids if token is not None)
