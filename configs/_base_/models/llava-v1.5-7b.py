"""LLaVA-v1.5-7B in the format of transformers; projector and language model train on supervised conversations."""

custom_imports = dict(imports=['mergemix_mm'], allow_failed_imports=False)

pretrained = 'llava-hf/llava-1.5-7b-hf'
# LLaVA-1.5 was trained on images that are padded to a square; the processor of llava-hf would crop them.
processor = dict(type='LlavaPaddingProcessor', pretrained_model_name_or_path=pretrained)
encode = dict(type='EncodeConversation', processor=processor, chat_template='llava', max_length=2048)

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
