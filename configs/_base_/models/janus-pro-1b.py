"""Janus-Pro-1B in the format of transformers; vision tower and VQ model are frozen, the rest trains on both tasks."""

custom_imports = dict(imports=['mergemix_mm'], allow_failed_imports=False)

pretrained = 'deepseek-community/Janus-Pro-1B'
processor = dict(type='transformers.AutoProcessor.from_pretrained', pretrained_model_name_or_path=pretrained)
encode = dict(type='EncodeConversation', processor=processor, chat_template='janus', max_length=2048)
encode_gen = dict(type='EncodeGeneration', processor=processor, max_length=512)

model = dict(
    type='UnifiedTuner',
    vlm=dict(
        type='JanusModel',
        pretrained=pretrained,
        trainable=['projector', 'language_model', 'generation'],
        gradient_checkpointing=True,
    ),
    head=dict(type='SFTHead'),
    drop_prompt=0.1,
    processor=processor,
)
