"""Turns a box into a mask: SAM (https://arxiv.org/abs/2304.02643), or GrabCut, which needs no weights."""

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.registry import MODELS
from PIL import Image
from torch import Tensor

from mergemix_mm.datasets.transforms.image_tokens import with_axes


@MODELS.register_module()
class SamSegmenter:
    """Segment Anything of transformers, prompted by a box. It gives one mask.

    Args:
        pretrained (str): A ``SamModel`` on the hub, or a folder. Defaults to ``'facebook/sam-vit-base'``.
        device (str, optional): Where it runs, in float32. Defaults to None, which takes the accelerator, or the CPU if
            there is none.

    Raises:
        OSError: If the model or its processor cannot be found.
    """

    def __init__(self, pretrained: str = 'facebook/sam-vit-base', device: str | None = None) -> None:
        from transformers import SamModel, SamProcessor

        self.processor = SamProcessor.from_pretrained(pretrained)
        self.model = SamModel.from_pretrained(pretrained).to(device or get_device()).eval()

    @torch.inference_mode()
    def __call__(self, image: Image.Image, box: Tensor) -> np.ndarray:
        """Segment.

        Args:
            image (PIL.Image.Image): Of any size, H x W.
            box (Tensor): [4], xyxy in pixels of the image.

        Returns:
            np.ndarray: [H, W] bool.
        """
        images, axes = with_axes(self.processor, [image.convert('RGB')])
        inputs = self.processor(images, input_boxes=[[box.tolist()]], return_tensors='pt', **axes)
        prompt = {key: inputs[key].to(self.model.device, torch.float32) for key in ('pixel_values', 'input_boxes')}
        logits = self.model(**prompt, multimask_output=False).pred_masks.cpu()
        sizes = inputs['original_sizes'], inputs['reshaped_input_sizes']
        # One image, one box, one mask.
        return self.processor.image_processor.post_process_masks(logits, *sizes)[0][0, 0].numpy()


@MODELS.register_module()
class GrabCutSegmenter:
    """OpenCV's GrabCut (Rother et al. 2004), which separates the colours in the box from those around it.

    Args:
        iterations (int): Number of rounds, each of which fits the colours and cuts. Defaults to 5.
    """

    def __init__(self, iterations: int = 5) -> None:
        self.iterations = iterations

    def __call__(self, image: Image.Image, box: Tensor) -> np.ndarray:
        """Segment. Arguments and result are those of :class:`SamSegmenter`."""
        import cv2

        pixels = np.asarray(image.convert('RGB'))[..., ::-1].copy()
        state = np.full(pixels.shape[:2], cv2.GC_BGD, dtype=np.uint8)
        left, top, right, bottom = _whole_pixels(box, *pixels.shape[:2])
        state[top:bottom, left:right] = cv2.GC_PR_FGD
        # GrabCut needs colours both inside and outside of the box.
        if 0 < (state == cv2.GC_PR_FGD).sum() < state.size:
            cv2.setRNGSeed(0)  # GrabCut starts from random clusters of colours; the seed makes its mask repeatable.
            models = np.zeros((2, 1, 65))  # Its state, for background and foreground.
            cv2.grabCut(pixels, state, None, models[0], models[1], self.iterations, cv2.GC_INIT_WITH_MASK)
        return (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)


def _whole_pixels(box: Tensor, height: int, width: int) -> list[int]:
    """The pixels that a box touches: left, top, right, bottom, the last two exclusive. An empty box touches none."""
    x1, y1, x2, y2 = box.tolist()
    if x2 <= x1 or y2 <= y1:
        return [0, 0, 0, 0]
    first, last = np.floor([x1, y1]), np.ceil([x2, y2])
    return [int(value) for value in (*first.clip(0), *last.clip(max=[width, height]))]
