"""Janus-Pro-7B with AIA and QLoRA: the language model in 4 bits (https://arxiv.org/abs/2305.14314), its adapters train.

The paper trains all weights. Rank and rate of the adapters are those of LLaVA-1.5 with LoRA in `configs/simpo`.
"""

_base_ = [
    '../_base_/models/janus-pro-7b.py',
    '../_base_/datasets/llava-mix665k-t2i_bs16.py',
    '../_base_/schedules/adamw_unified_1e.py',
    '../_base_/runtimes/vlm_runtime.py',
]

model = dict(
    vlm=dict(
        dtype='bfloat16',
        quantization_config=dict(
            quant_method='bitsandbytes',
            load_in_4bit=True,
            bnb_4bit_quant_type='nf4',
            bnb_4bit_use_double_quant=True,
        ),
        lora=dict(r=128, lora_alpha=256, lora_dropout=0.05),
    )
)
train_dataloader = dict(dataset=dict(gen=dict(pipeline=[_base_.encode_gen]), und=dict(pipeline=[_base_.encode])))
# Adapters need a higher rate than the weights that they adapt.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'lora_': dict(lr_mult=10.0)}))
custom_hooks = [*_base_.custom_hooks, dict(type='AIAHook', preset='janus_pro')]
