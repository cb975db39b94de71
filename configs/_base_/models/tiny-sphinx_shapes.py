"""A SPHINX of 1 million weights for drawn shapes of 48 px: a ViT and a ConvNeXt, mixed on a grid of 6 x 6, a Llama of 3
layers.
"""

custom_imports = dict(imports=['mergemix_mm'], allow_failed_imports=False)

mean = std = (0.5, 0.5, 0.5)
processor = dict(
    type='SphinxProcessor',
    tokenizer=dict(type='ShapesTaskTokenizer'),
    view_tokens=36,
    image_size=48,
    image_mean=mean,
    image_std=std,
    # Three layers learn sooner to find an object if the image comes after the question; configs/sphinx/README.md.
    chat_template='question_first',
)
encode = dict(type='EncodeConversation', processor=processor)

# All weights are random at the start, so the encoders are trained as well.
model = dict(
    type='VLMTuner',
    vlm=dict(
        type='SphinxModel',
        language_model=dict(
            config=dict(
                model_type='qwen3',  # Its norms on queries and keys let attention learn sooner.
                vocab_size=224,
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=4,
                head_dim=32,
                rope_theta=1e6,
                max_position_embeddings=256,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                tie_word_embeddings=False,
                initializer_range=0.08,
            )
        ),
        image_token_id=216,  # After the 216 words of the tokenizer.
        backbone=dict(
            type='MultiBackbone',
            encoders=[
                dict(
                    # Its position embedding is two-dimensional and fixed, so places need not be learned.
                    encoder=dict(
                        type='mmpretrain.MoCoV3ViT',
                        arch=dict(embed_dims=96, num_layers=3, num_heads=4, feedforward_channels=192),
                        img_size=48,
                        patch_size=8,
                        out_type='featmap',
                    ),
                    frozen=False,
                ),
                dict(
                    encoder=dict(
                        type='mmpretrain.ConvNeXt',
                        arch=dict(depths=[1, 2], channels=[32, 64]),
                        stem_patch_size=4,
                        out_indices=(1,),
                        layer_scale_init_value=0.0,  # Layer scale helps deep networks only.
                        gap_before_final_norm=False,
                    ),
                    frozen=False,
                ),
            ],
        ),
        neck=dict(type='EmbeddingMixNeck', in_channels=[96, 64], out_channels=128, grid=6),
        trainable=['vision_tower', 'projector', 'language_model'],
    ),
    head=dict(type='SFTHead'),
    processor=processor,
    generation=dict(max_new_tokens=52),
)
