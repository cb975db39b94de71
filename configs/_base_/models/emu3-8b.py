"""Emu3-8B in the format of transformers; the VQ model is frozen, the language model trains on both tasks."""

custom_imports = dict(imports=['mergemix_mm'], allow_failed_imports=False)

# AIA starts from the weights before instruction tuning, but those were not released in the format of transformers.
pretrained = 'BAAI/Emu3-Gen-hf'
# An image of 720 x 720 pixels is 90 x 90 codes.
processor = dict(
    type='transformers.AutoProcessor.from_pretrained',
    pretrained_model_name_or_path=pretrained,
    max_pixels=720 * 720,
)
encode = dict(type='EncodeConversation', processor=processor, chat_template='emu3', max_length=9216)
encode_gen = dict(type='EncodeGeneration', processor=processor, image_size=720, max_length=512)

model = dict(
    type='UnifiedTuner',
    vlm=dict(type='Emu3Model', pretrained=pretrained, trainable=['language_model'], gradient_checkpointing=True),
    head=dict(type='SFTHead'),
    drop_prompt=0.1,
    processor=processor,
    image_generation=dict(guidance_scale=3.0),
)
