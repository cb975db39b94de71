"""GLM-4.1V, GLM-4.5V and GLM-4.6V (https://arxiv.org/abs/2507.01006): Qwen2.5-VL's patches between other marks."""

from typing import ClassVar

from .qwen2_5_vl import Qwen2_5_VLFamily
from .qwen_towers import Glm4vEncoder, Glm4vMoeEncoder


class Glm4vFamily(Qwen2_5_VLFamily):
    """``Glm4vForConditionalGeneration`` and, with experts, ``Glm4vMoeForConditionalGeneration``.

    Batches are those of Qwen2.5-VL. The processor counts an image as two frames, so its limits
    ``size=dict(shortest_edge=..., longest_edge=...)`` are twice the pixels of the still image; the library ignores
    ``max_pixels``. The template is that of GLM-4.1V; GLM-4.5V, which has the same class of processor, has
    that of GLM-4.6V (``chat_template='glm46v'``), and is told from GLM-4.1V by the prompt that its own template writes.
    """

    model_types: ClassVar[tuple[str, ...]] = ('glm4v', 'glm4v_moe')
    processors = ('Glm4vProcessor',)
    chat_template = 'glm4v'
    image_frame = ('<|begin_of_image|>', '<|end_of_image|>')
    frame_keys = ('image_start_token_id', 'image_end_token_id')
    parts = dict(
        vision_tower=('model.visual',),
        projector=('model.visual.downsample', 'model.visual.merger'),
        language_model=('model.language_model', 'lm_head'),
    )
    tower_adapters = {
        'transformers.models.glm4v.modeling_glm4v.Glm4vVisionModel': Glm4vEncoder,
        'transformers.models.glm4v_moe.modeling_glm4v_moe.Glm4vMoeVisionModel': Glm4vMoeEncoder,
    }

    def _most_pixels(self, processor: dict, side: int) -> int:
        if processor.get('max_pixels'):
            raise ValueError(
                f'max_pixels={processor["max_pixels"]} is no option of the processor of GLM-4V, which ignores it: set '
                'size=dict(shortest_edge=..., longest_edge=...), in pixels of two frames'
            )
        size = processor.get('size') or {}
        frames = self.model.config.vision_config.temporal_patch_size
        return size.get('longest_edge', 15000 * side**2) // frames


class Glm46VFamily(Glm4vFamily):
    """``Glm46VForConditionalGeneration``: the model of GLM-4.1V, the template of GLM-4.5V."""

    model_types = ('glm46v',)
    processors = ('Glm46VProcessor',)
    chat_template = 'glm46v'
