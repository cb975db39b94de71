"""LLaVA-1.5's own view of an image: padded to a square, where the processors of its published copies crop it."""

from typing import TYPE_CHECKING

from mmengine.registry import TRANSFORMS

if TYPE_CHECKING:
    from transformers import LlavaImageProcessor, LlavaProcessor


@TRANSFORMS.register_module('LlavaPaddingProcessor')
def llava_padding_processor(pretrained_model_name_or_path: str, **kwargs) -> 'LlavaProcessor':
    """Load the processor of a LLaVA, and let it pad images to a square with the mean colour, as LLaVA-1.5 was trained.

    The processor of `llava-hf` cuts the middle square out of an image, so that what stands at its borders is not seen
    (https://github.com/huggingface/transformers/issues/33175). Saved along with a model, this one pads everywhere.

    Args:
        pretrained_model_name_or_path (str): Name on the hub, or folder.
        **kwargs: Further arguments of ``AutoProcessor.from_pretrained``.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
    processor.image_processor = pad_to_square(processor.image_processor)
    return processor


def pad_to_square(images) -> 'LlavaImageProcessor':
    """An image processor like CLIP's, but with padding to a square in place of the crop."""
    from transformers import LlavaImageProcessor

    kept = ('size', 'crop_size', 'image_mean', 'image_std', 'resample', 'rescale_factor', 'do_convert_rgb')
    return LlavaImageProcessor(do_pad=True, **{key: getattr(images, key) for key in kept})
