"""LLaVA 1.5 (https://arxiv.org/abs/2310.03744): a square image, a CLIP tower, an MLP, one placeholder per patch."""

from .base import Family, ImageInput, square_image


class LlavaFamily(Family):
    """``LlavaForConditionalGeneration``."""

    model_types = ('llava',)
    processors = ('LlavaProcessor',)
    chat_template = 'llava'
    can_merge_tower = True

    def largest_image(self, processor: dict) -> ImageInput:
        config = self.model.config
        side, patch = config.vision_config.image_size, config.vision_config.patch_size
        with_class = config.vision_feature_select_strategy != 'default'
        return square_image((side // patch) ** 2 + with_class, config.image_token_id, side)
