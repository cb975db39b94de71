"""From a box to the mask of what is in it: SAM (https://arxiv.org/abs/2304.02643), or GrabCut where no weights are."""

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.registry import MODELS
from PIL import Image
from torch import Tensor

from mergemix_mm.datasets.transforms.image_tokens import with_axes


@MODELS.register_module()
class SamSegmenter:
    """Segment Anything of transformers, prompted by a box, of which it gives one mask.

    Args:
        pretrained (str): A ``SamModel`` on the hub, or a folder. Defaults to ``'facebook/sam-vit-base'``.
        device (str, optional): Where it runs, in float32. Defaults to None: the accelerator, or the CPU.

    Raises:
        OSError: If model or processor cannot be found.
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
    """OpenCV's GrabCut (Rother et al. 2004): the colours in the box that are not those around it. Needs no weights.

    Args:
        iterations (int): Rounds of fitting colours and cutting. Defaults to 5.
    """

    def __init__(self, iterations: int = 5) -> None:
        self.iterations = iterations

    def __call__(self, image: Image.Image, box: Tensor) -> np.ndarray:
        """Segment; arguments and result are those of :class:`SamSegmenter`."""
        import cv2

        pixels = np.asarray(image.convert('RGB'))[..., ::-1].copy()
        state = np.full(pixels.shape[:2], cv2.GC_BGD, dtype=np.uint8)
        left, top, right, bottom = _whole_pixels(box, *pixels.shape[:2])
        state[top:bottom, left:right] = cv2.GC_PR_FGD
        # Without a colour on one of the sides, there is nothing to tell apart.
        if 0 < (state == cv2.GC_PR_FGD).sum() < state.size:
            cv2.setRNGSeed(0)  # It starts from random clusters of colours: the same mask each time.
            models = np.zeros((2, 1, 65))  # Its own state, of background and foreground.
            cv2.grabCut(pixels, state, None, models[0], models[1], self.iterations, cv2.GC_INIT_WITH_MASK)
        return (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)


def _whole_pixels(box: Tensor, height: int, width: int) -> list[int]:
    """The pixels that a box touches, left, top, right and bottom (both exclusive); none for a box without extent."""
    x1, y1, x2, y2 = box.tolist()
    if x2 <= x1 or y2 <= y1:
        return [0, 0, 0, 0]
    first, last = np.floor([x1, y1]), np.ceil([x2, y2])
    return [int(value) for value in (*first.clip(0), *last.clip(max=[width, height]))]
