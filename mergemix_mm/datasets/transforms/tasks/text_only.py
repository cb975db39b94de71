"""Questions without an image."""

from mmengine.registry import TRANSFORMS

from .vqa import VQATask


@TRANSFORMS.register_module()
class TextOnlyTask(VQATask):
    """``question`` -> ``answer``, with which a language model that learns to see keeps its knowledge.

    Args:
        instruction (str, optional): A text around ``{question}``. Defaults to ``'default'``: the question alone.
    """

    TASK = 'text_only'
    NUM_IMAGES = 0
