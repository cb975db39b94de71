"""LLaVA-1.5's own preprocessing, which pads images to a square; the processors of its published copies crop them."""

from typing import TYPE_CHECKING

from mmengine.registry import TRANSFORMS

if TYPE_CHECKING:
    from transformers import LlavaImageProcessor, LlavaProcessor


@TRANSFORMS.register_module('LlavaPaddingProcessor')
def llava_padding_processor(pretrained_model_name_or_path: str, **kwargs) -> 'LlavaProcessor':
    """Load the processor of a LLaVA that pads images to a square with the mean colour, as in the training of LLaVA-1.5.

    The processor of `llava-hf` crops the middle square of an image, so the model does not see its borders
    (https://github.com/huggingface/transformers/issues/33175). Once saved with a model, this processor pads wherever
    the model is loaded.

    Args:
        pretrained_model_name_or_path (str): Name on the hub, or folder.
        **kwargs: Further arguments of ``AutoProcessor.from_pretrained``.

    Returns:
        LlavaProcessor: With a `LlavaImageProcessor`.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
    processor.image_processor = pad_to_square(processor.image_processor)
    return processor


def pad_to_square(images) -> 'LlavaImageProcessor':
    """An image processor with the settings of a CLIP one that pads to a square instead of cropping."""
    from transformers import LlavaImageProcessor

    # The settings that both classes have; they differ in the padding that replaces the crop.
    kept = ('size', 'crop_size', 'image_mean', 'image_std', 'resample', 'rescale_factor', 'do_convert_rgb')
    return LlavaImageProcessor(do_pad=True, **{key: getattr(images, key) for key in kept})
