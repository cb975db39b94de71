"""Mixed SimPO for Qwen2.5-VL-3B. A CLIP scores the patches, since a tower with rotary positions and windows cannot."""

_base_ = './qwen2.5-vl-3b_8xb16-sft-coslr-1e_llava-mix665k.py'

model = dict(
    head=dict(_delete_=True, type='SimPOHead', beta=1.0),
    mixer=dict(
        type='MergeMix',
        encoder=dict(
            type='transformers.CLIPVisionModel.from_pretrained',
            pretrained_model_name_or_path='openai/clip-vit-base-patch16',
        ),
    ),
)
