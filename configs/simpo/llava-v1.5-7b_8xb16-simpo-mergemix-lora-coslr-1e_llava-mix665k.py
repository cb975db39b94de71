"""Mixed SimPO with LoRA: adapters of rank 128 in the language model; the whole projector trains."""

_base_ = './llava-v1.5-7b_8xb16-simpo-mergemix-coslr-1e_llava-mix665k.py'

model = dict(vlm=dict(dtype='bfloat16', lora=dict(r=128, lora_alpha=256, lora_dropout=0.05)))
# Adapters need a higher rate than the weights that they adapt, so the projector keeps its 2e-5.
optim_wrapper = dict(
    optimizer=dict(lr=2e-4), paramwise_cfg=dict(custom_keys={'multi_modal_projector': dict(lr_mult=0.1)})
)
