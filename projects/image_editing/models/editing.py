"""Erases or replaces what a mask covers. Every other pixel stays as it is."""

from typing import Any

import numpy as np
import torch
from PIL import Image

# The distance in pixels from which the colours around a hole are read.
RADIUS = 3
# Sides of painted images are multiples of this: latents are 8 times smaller, and some models halve them again.
MULTIPLE = 16


def dilate(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Grow a mask on all sides, so that it covers shadows and soft edges of the object as well.

    Args:
        mask (np.ndarray): [H, W] bool.
        pixels (int): The distance to grow by, >= 0.

    Returns:
        np.ndarray: [H, W] bool, the pixels within that distance of the mask.
    """
    import cv2

    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)


def erase(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Fill a mask with what surrounds it, by OpenCV's inpainting (Telea 2004). It suits small things on calm areas.

    Args:
        image (PIL.Image.Image): Of size H x W.
        mask (np.ndarray): [H, W] bool.
    """
    import cv2

    filled = cv2.inpaint(np.array(image.convert('RGB')), mask.astype(np.uint8), RADIUS, cv2.INPAINT_TELEA)
    return _paste(image, Image.fromarray(filled), mask)


def replace(image: Image.Image, mask: np.ndarray, prompt: str, pipeline: Any, seed: int = 0) -> Image.Image:
    """Paint what a prompt says into a mask, at the resolution that the pipeline was trained for.

    Args:
        image (PIL.Image.Image): Of size H x W.
        mask (np.ndarray): [H, W] bool.
        prompt (str): What should be there instead.
        pipeline (Any): An inpainting pipeline of diffusers, see :func:`load_pipeline`.
        seed (int): Seed of the noise that the pipeline starts from. Defaults to 0.
    """
    scale = _trained_side(pipeline) / min(image.size)
    width, height = (max(round(length * scale / MULTIPLE), 1) * MULTIPLE for length in image.size)
    painted = pipeline(
        prompt=prompt,
        image=image.convert('RGB').resize((width, height), Image.Resampling.BICUBIC),
        mask_image=Image.fromarray(mask).convert('L').resize((width, height), Image.Resampling.BOX),
        width=width,
        height=height,
        # A generator on the CPU gives the same noise on every device.
        generator=torch.Generator().manual_seed(seed),
    ).images[0]
    return _paste(image, painted.resize(image.size, Image.Resampling.BICUBIC), mask)


def load_pipeline(pretrained: str, device: str) -> Any:
    """Load an inpainting pipeline of diffusers.

    Args:
        pretrained (str): Name on the hub, or folder.
        device (str): Where it runs. It has float16 weights on an accelerator and float32 weights on a CPU.

    Raises:
        ImportError: If diffusers is missing.
        OSError: If there is no such pipeline.
    """
    try:
        from diffusers import AutoPipelineForInpainting
    except ImportError as error:
        # Later versions need a huggingface_hub that transformers 4 does not support.
        raise ImportError(f'diffusers cannot be imported ({error}); run `pip install "diffusers<0.37"`.') from error
    dtype = torch.float32 if torch.device(device).type == 'cpu' else torch.float16
    return AutoPipelineForInpainting.from_pretrained(pretrained, torch_dtype=dtype).to(device)


def _trained_side(pipeline: Any) -> int:
    """The side in pixels of the images that a pipeline was trained on, 512 for Stable Diffusion 1.5."""
    sample_size = getattr(pipeline, 'default_sample_size', None) or pipeline.unet.config.sample_size
    return sample_size * pipeline.vae_scale_factor


def _paste(image: Image.Image, other: Image.Image, mask: np.ndarray) -> Image.Image:
    """The other image inside the mask, the image itself outside."""
    return Image.fromarray(np.where(mask[..., None], np.asarray(other), np.asarray(image.convert('RGB'))))
