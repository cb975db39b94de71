"""Qwen2.5-VL-3B: the vision tower is frozen, merger and language model train on supervised conversations."""

custom_imports = dict(imports=['mergemix_mm'], allow_failed_imports=False)

pretrained = 'Qwen/Qwen2.5-VL-3B-Instruct'
# At most 1,280 image tokens of 28 x 28 pixels.
processor = dict(
    type='transformers.AutoProcessor.from_pretrained',
    pretrained_model_name_or_path=pretrained,
    max_pixels=1280 * 28 * 28,
)
encode = dict(type='EncodeConversation', processor=processor, chat_template='qwen2_5_vl', max_length=4096)

model = dict(
    type='VLMTuner',
    vlm=dict(
        type='HFVisionLanguageModel',
        pretrained=pretrained,
        trainable=['projector', 'language_model'],
        gradient_checkpointing=True,
    ),
    head=dict(type='SFTHead'),
    processor=processor,
)
