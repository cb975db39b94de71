"""Qwen3.5: Qwen3-VL's tower without DeepStack; most layers of the language model have linear attention."""

from .qwen2_5_vl import Qwen2_5_VLFamily
from .qwen_towers import Qwen3_5Encoder, Qwen3_5MoeEncoder


class Qwen3_5Family(Qwen2_5_VLFamily):
    """``Qwen3_5ForConditionalGeneration`` and ``Qwen3_5MoeForConditionalGeneration``, of transformers 5 only.

    Layers of linear attention keep a state instead of attending to tokens: AIA leaves them out. Without the kernels of
    the packages ``fla`` and ``causal_conv1d``, the library computes them by torch, which is slower.

    The processor is that of Qwen3-VL. Its template is told from that of Qwen3-VL by the prompt that it writes: an
    answer comes after an empty block of thoughts.
    """

    model_types = ('qwen3_5', 'qwen3_5_moe')
    processors = ()
    chat_template = 'qwen3_5'
    no_packing = 'its layers of linear attention carry a state from one token to all later ones'
    tower_adapters = {
        'transformers.models.qwen3_5.modeling_qwen3_5.Qwen3_5VisionModel': Qwen3_5Encoder,
        'transformers.models.qwen3_5_moe.modeling_qwen3_5_moe.Qwen3_5MoeVisionModel': Qwen3_5MoeEncoder,
    }
