"""Finds the box of what an expression refers to, by a trained SPHINX (https://arxiv.org/abs/2311.07575)."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mergemix_mm.datasets import EncodeConversation, GroundingTask, SphinxProcessor
from mergemix_mm.datasets.collate import ConversationCollate
from mergemix_mm.datasets.conversations.prompts import question_messages
from mergemix_mm.engine.launch import device_and_dtype
from mergemix_mm.evaluation.metrics.answer_boxes import read_boxes
from mergemix_mm.models.vlms import SphinxModel
from mergemix_mm.models.vlms.sphinx.files import LANGUAGE_MODEL

MAX_NEW_TOKENS = 64  # A box with three decimals takes about 30 tokens of Llama 2.


class Grounder:
    """Asks a SPHINX for a box, with the question of ``GroundingTask``.

    Args:
        folder (str): A model that ``SavePretrainedHook`` wrote, with its processor beside it.
        device (str, optional): Where the model runs. Defaults to None, which takes the accelerator, or the CPU if there
            is none. The weights are bfloat16 on an accelerator and float32 on a CPU.

    Raises:
        OSError: If the folder lacks the model or the processor.
        ValueError: If its weights do not fit its config.
    """

    def __init__(self, folder: str, device: str | None = None) -> None:
        device, dtype = device_and_dtype(device)
        self.processor = SphinxProcessor.from_pretrained(folder)
        self.encode = EncodeConversation(self.processor, generate=True)
        language_model = dict(pretrained=str(Path(folder, LANGUAGE_MODEL)), dtype=dtype)
        self.vlm = SphinxModel(language_model, pretrained=folder).to(device).eval()

    @torch.inference_mode()
    def __call__(self, image: Image.Image, expression: str) -> tuple[str, Tensor | None]:
        """Locate one thing.

        Args:
            image (PIL.Image.Image): Of any size.
            expression (str): Words for the thing, such as 'the red ring'.

        Returns:
            tuple[str, Tensor | None]: The answer as text, and its box as :func:`read_box` returns it.
        """
        question = GroundingTask.INSTRUCTION.format(expression=expression.strip().rstrip('.'))
        record = dict(messages=question_messages(question, num_images=1), images=[image], source='expression')
        batch = ConversationCollate('left')([self.encode(record)])['inputs']
        device = next(self.vlm.parameters()).device
        batch = self.vlm.prepare({key: value.to(device) for key, value in batch.items()})
        tokens = self.vlm.generate(batch, max_new_tokens=MAX_NEW_TOKENS).sequences[0]
        answer = self.processor.decode(tokens, skip_special_tokens=True).strip()
        size = (image.height, image.width)
        return answer, read_box(dict(pred_answer=answer, image_size=size, align=self.processor.align), 'Grounder')


def read_box(sample: dict, reader: str) -> Tensor | None:
    """The box that an answer names.

    Args:
        sample (dict): ``pred_answer``, ``image_size`` and perhaps ``align``, as for ``ReferringBoxMetric``.
        reader (str): The name of the caller, for errors.

    Returns:
        Tensor | None: [4] float64, xyxy in pixels of the image; None if the answer does not name exactly one box.
    """
    boxes = read_boxes(sample, reader)
    return boxes[0] if boxes is not None and len(boxes) == 1 else None
