"""Qwen3-VL (https://arxiv.org/abs/2511.21631): Qwen2.5-VL's patches; the tower also feeds the first text layers."""

from torch import nn

from .qwen2_5_vl import Qwen2_5_VLFamily
from .qwen_towers import Qwen3VLEncoder, Qwen3VLMoeEncoder


class Qwen3VLFamily(Qwen2_5_VLFamily):
    """``Qwen3VLForConditionalGeneration`` and, with experts, ``Qwen3VLMoeForConditionalGeneration``.

    Batches are those of Qwen2.5-VL. Features of several layers of the tower are added to the hidden states of the first
    layers of the language model (DeepStack), each through a projector of its own. Timestamps are written for videos
    only, so the text of an image has none.
    """

    model_types = ('qwen3_vl', 'qwen3_vl_moe')
    processors = ('Qwen3VLProcessor',)
    chat_template = 'qwen3_vl'
    tower_adapters = {
        'transformers.models.qwen3_vl.modeling_qwen3_vl.Qwen3VLVisionModel': Qwen3VLEncoder,
        'transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe.Qwen3VLMoeVisionModel': Qwen3VLMoeEncoder,
    }

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        mergers = 'model.visual.deepstack_merger_list'
        # Named one by one: peft saves modules, but no list of modules.
        deepstack = tuple(f'{mergers}.{index}' for index in range(len(model.get_submodule(mergers))))
        self.parts = self.parts | dict(projector=('model.visual.merger', *deepstack))
