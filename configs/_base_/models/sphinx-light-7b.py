"""The light SPHINX (https://arxiv.org/abs/2402.05935) on Llama 2 7B: a ConvNeXt at 512 px and DINOv2 at 224 px, 259
tokens an image.
"""

_base_ = './sphinx-7b.py'

# The class token and 16 x 16 patches.
processor = dict(view_tokens=257, image_size=512)
encode = dict(processor=processor)

convnext, dinov2 = _base_.model.vlm.backbone.encoders[1:3]
model = dict(
    vlm=dict(
        backbone=dict(encoders=[dict(convnext, input_size=512), dinov2]),
        neck=dict(
            _delete_=True,
            type='EmbeddingMixNeck',
            in_channels=[3072, 1536],
            out_channels=4096,
            grid=16,
            class_token=True,
        ),
    ),
    processor=processor,
)
