"""DeepSeek-VL (https://arxiv.org/abs/2403.05525): a padded square image, a SigLIP tower, an MLP, Llama."""

from .base import Family, ImageInput, square_image


class DeepseekVLFamily(Family):
    """``DeepseekVLForConditionalGeneration``. The model of two towers is another type, ``deepseek_vl_hybrid``."""

    model_types = ('deepseek_vl',)
    processors = ('DeepseekVLProcessor',)
    chat_template = 'deepseek_vl'
    parts = dict(
        vision_tower=('model.vision_model',),
        projector=('model.aligner',),
        language_model=('model.language_model', 'lm_head'),
    )

    def largest_image(self, processor: dict) -> ImageInput:
        config = self.model.config
        side = config.vision_config.image_size
        return square_image((side // config.vision_config.patch_size) ** 2, config.image_token_id, side)
