"""A LLaVA of 0.9 million weights for drawn shapes of 48 px: a CLIP tower of 4 layers, a Llama of 3."""

custom_imports = dict(imports=['mergemix_mm'], allow_failed_imports=False)

processor = dict(type='ShapesProcessor', image_size=48, patch_size=8)
encode = dict(type='EncodeConversation', processor=processor)

model = dict(
    type='VLMTuner',
    vlm=dict(
        type='HFVisionLanguageModel',
        config=dict(
            model_type='llava',
            vision_config=dict(
                model_type='clip_vision_model',
                hidden_size=96,
                intermediate_size=192,
                num_hidden_layers=4,
                num_attention_heads=4,
                image_size=48,
                patch_size=8,
            ),
            text_config=dict(
                model_type='llama',
                vocab_size=64,
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=128,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                tie_word_embeddings=False,
                initializer_range=0.08,
            ),
            initializer_range=0.08,
            image_token_index=4,
            image_seq_length=36,
            vision_feature_layer=-2,
            vision_feature_select_strategy='default',
        ),
        trainable=['vision_tower', 'projector', 'language_model'],
    ),
    head=dict(type='SFTHead'),
    processor=processor,
    generation=dict(max_new_tokens=2),
)
