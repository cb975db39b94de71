"""Qwen3.5."""

from ._parts import text_config, token_ids
from .qwen2_5_vl import FRAME, IMAGE_TEXT, IMAGE_TOKEN, SCORED_SIZE, TOKENIZER
from .qwen2_5_vl import SPECIAL_TOKENS as TOKENS
from .qwen3_vl import EXPERTS, LARGEST_IMAGE
from .qwen3_vl import config as qwen3_vl_config
from .qwen3_vl import processor as qwen3_vl_processor

__all__ = ['FRAME', 'IMAGE_TEXT', 'IMAGE_TOKEN', 'LARGEST_IMAGE', 'SCORED_SIZE', 'TOKENIZER', 'WRITTEN']
SHARED = dict(qwen3_5_moe=dict(text_config=EXPERTS | dict(shared_expert_intermediate_size=16)))
TRANSFORMERS = '5'
SPECIAL_TOKENS = (*TOKENS, '<think>', '</think>')
WRITTEN = (
    f'<|im_start|>user\n{IMAGE_TEXT}Q<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n[A<|im_end|>]\n'
    '<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n[B<|im_end|>]\n'
)
# As the released one, it marks no answers, and its prompt asks for thoughts unless told otherwise. It tells the family
# from Qwen3-VL, whose processor it shares.
RELEASED_TEMPLATE = (
    '{%- for message in messages -%}'
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    '{%- for part in message.content -%}'
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text }}"
    '{%- endfor -%}'
    "{{ '<|im_end|>\\n' }}"
    '{%- endfor -%}'
    '{%- if add_generation_prompt -%}'
    "{{ '<|im_start|>assistant\\n<think>\\n' }}"
    "{{ '\\n</think>\\n\\n' if enable_thinking is defined and enable_thinking is false else '' }}"
    '{%- endif -%}'
)


def config():
    found = qwen3_vl_config()
    del found['vision_config']['deepstack_visual_indexes']
    # Half of a head turns, as there. Linear attention has two heads of keys for four of values.
    rope = dict(rope_type='default', mrope_section=[2, 1, 1], mrope_interleaved=True, partial_rotary_factor=0.5)
    linear = dict(
        linear_conv_kernel_dim=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=['linear_attention', 'full_attention', 'linear_attention', 'full_attention'],
    )
    text = text_config(SPECIAL_TOKENS, num_hidden_layers=4, head_dim=16, rope_parameters=dict(rope, rope_theta=1e4))
    ids = token_ids(SPECIAL_TOKENS)
    return found | dict(text_config=text | linear, image_token_id=ids[IMAGE_TOKEN])


def processor(tokenizer):
    made = qwen3_vl_processor(tokenizer)
    made.chat_template = RELEASED_TEMPLATE
    return made
