"""Brings a batch of conversations to the model's device."""

from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS


@MODELS.register_module()
class VLMDataPreprocessor(BaseDataPreprocessor):
    """Moves the tensors of ``inputs``, nested ones included, to the device.

    The processor has resized and normalised the images already, and the data samples hold texts: they stay as they
    are.

    Args:
        non_blocking (bool): Whether to copy without waiting, from pinned memory. Defaults to False.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """dict(inputs=batch, data_samples=...) -> the same with the batch on the device."""
        return {**data, 'inputs': self.cast_data(data['inputs'])}
