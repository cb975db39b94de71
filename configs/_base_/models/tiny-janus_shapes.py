"""A Janus of 1.5 million weights for drawn shapes of 64 px, without a download.

It reads an image as 8 x 8 tokens and writes one as 8 x 8 codes, which are colours.
"""

custom_imports = dict(imports=['mergemix_mm'], allow_failed_imports=False)

processor = dict(type='ShapesJanusProcessor', image_size=64, patch_size=8)
encode = dict(type='EncodeConversation', processor=processor)
encode_gen = dict(type='EncodeGeneration', processor=processor)

model = dict(
    type='UnifiedTuner',
    vlm=dict(
        type='JanusModel',
        # The tower trains, since its weights are random at the start. The codes of the VQ model are set, not trained.
        trainable=['vision_tower', 'projector', 'language_model', 'generation'],
        init_cfg=dict(type='MosaicCodes'),
        config=dict(
            model_type='janus',
            vision_config=dict(
                hidden_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                mlp_ratio=2.0,
                image_size=64,
                patch_size=8,
                num_image_tokens=64,
                projection_dim=128,
                depth=2,
                initializer_range=0.08,
            ),
            text_config=dict(
                model_type='llama',
                vocab_size=64,
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=256,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                tie_word_embeddings=False,
                initializer_range=0.08,
            ),
            vq_config=dict(
                embed_dim=5,
                num_embeddings=216,  # 6 levels of red, green and blue.
                latent_channels=5,
                base_channels=128,
                channel_multiplier=[1, 1, 1, 1],
                num_res_blocks=0,
                projection_dim=128,
                image_token_embed_dim=128,
                num_hidden_layers=2,
                initializer_range=0.08,
            ),
            image_token_id=3,
            initializer_range=0.08,
        ),
    ),
    head=dict(type='SFTHead'),
    drop_prompt=0.1,
    processor=processor,
    generation=dict(max_new_tokens=2),
    image_generation=dict(guidance_scale=2.0),
)
