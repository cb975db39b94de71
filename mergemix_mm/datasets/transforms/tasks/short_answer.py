"""Questions that ask for a word or a phrase."""

from mmengine.registry import TRANSFORMS

from ...conversations.prompts import SHORT_ANSWER
from .vqa import VQATask


@TRANSFORMS.register_module()
class ShortAnswerTask(VQATask):
    """``question`` -> ``answer``, a word or a phrase. Images are optional.

    Args:
        instruction (str, optional): A text around ``{question}``. Defaults to ``'default'``, the prompt of LLaVA-1.5.
    """

    TASK = 'short_answer'
    INSTRUCTION = '{question}' + SHORT_ANSWER
