"""Erases what a mask covers, or replaces it; every other pixel stays as it is."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

RADIUS = 3  # In pixels, how far around a hole its colours are read.
MULTIPLE = 16  # Of pixels: latents are 8 times smaller than images, and some models see them in patches of 2 x 2.


def dilate(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Let a mask grow on all sides, so that shadows and soft edges go with the object.

    Args:
        mask (np.ndarray): [H, W] bool.
        pixels (int): By how much, >= 0.

    Returns:
        np.ndarray: [H, W] bool: what lies within that distance of the mask.
    """
    import cv2

    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)


def erase(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Fill what a mask covers from around it (Telea 2004, OpenCV's): for small things on a calm background.

    Args:
        image (PIL.Image.Image): Of size H x W.
        mask (np.ndarray): [H, W] bool.
    """
    import cv2

    filled = cv2.inpaint(np.array(image.convert('RGB')), mask.astype(np.uint8), RADIUS, cv2.INPAINT_TELEA)
    return _paste(image, Image.fromarray(filled), mask)


def replace(image: Image.Image, mask: np.ndarray, prompt: str, pipeline: Callable, seed: int = 0) -> Image.Image:
    """Paint what a prompt says into a mask, at the resolution that the model was trained for.

    Args:
        image (PIL.Image.Image): Of size H x W.
        mask (np.ndarray): [H, W] bool.
        prompt (str): What shall be there instead.
        pipeline (Callable): An inpainting pipeline of diffusers, see :func:`load_pipeline`.
        seed (int): Of the noise that it starts from. Defaults to 0.
    """
    scale = _trained_side(pipeline) / min(image.size)
    width, height = (max(round(length * scale / MULTIPLE), 1) * MULTIPLE for length in image.size)
    painted = pipeline(
        prompt=prompt,
        image=image.convert('RGB').resize((width, height), Image.Resampling.BICUBIC),
        mask_image=Image.fromarray(mask).convert('L').resize((width, height), Image.Resampling.BOX),
        width=width,
        height=height,
        generator=torch.Generator().manual_seed(seed),  # On the CPU: the same noise on every device.
    ).images[0]
    return _paste(image, painted.resize(image.size, Image.Resampling.BICUBIC), mask)


def load_pipeline(pretrained: str, device: str) -> Callable:
    """Load an inpainting pipeline of diffusers.

    Args:
        pretrained (str): Name on the hub, or folder.
        device (str): Where it runs: in float16 on an accelerator, in float32 on a CPU.

    Raises:
        ImportError: If diffusers is missing.
        OSError: If there is no such pipeline.
    """
    try:
        from diffusers import AutoPipelineForInpainting
    except ImportError as error:
        # Later ones need a huggingface_hub that transformers 4 does not work with.
        raise ImportError(
            f'replacing needs diffusers, which cannot be imported ({error}); run `pip install "diffusers<0.37"`.'
        ) from error
    dtype = torch.float32 if torch.device(device).type == 'cpu' else torch.float16
    return AutoPipelineForInpainting.from_pretrained(pretrained, torch_dtype=dtype).to(device)


def _trained_side(pipeline: Callable) -> int:
    """Side in pixels of the images that a pipeline was trained on: 512 of Stable Diffusion 1.5."""
    sample_size = getattr(pipeline, 'default_sample_size', None) or pipeline.unet.config.sample_size
    return sample_size * pipeline.vae_scale_factor


def _paste(image: Image.Image, other: Image.Image, mask: np.ndarray) -> Image.Image:
    """The other image where the mask is, the image itself elsewhere."""
    return Image.fromarray(np.where(mask[..., None], np.asarray(other), np.asarray(image.convert('RGB'))))
