"""SPHINX (https://arxiv.org/abs/2311.07575) on Llama 2 7B: four frozen encoders, 224 px, 291 tokens an image."""

custom_imports = dict(imports=['mergemix_mm'], allow_failed_imports=False)

language_model = 'meta-llama/Llama-2-7b-hf'
clip_mean, clip_std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
imagenet_mean, imagenet_std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# 32 queries, the class token and 16 x 16 patches.
processor = dict(type='SphinxProcessor', tokenizer=language_model, view_tokens=289, image_size=224)
encode = dict(type='EncodeConversation', processor=processor, max_length=2048)

model = dict(
    type='VLMTuner',
    vlm=dict(
        type='SphinxModel',
        language_model=dict(pretrained=language_model),
        image_token_id=32000,  # After the 32,000 tokens of Llama 2.
        backbone=dict(
            type='MultiBackbone',
            mean=clip_mean,
            std=clip_std,
            encoders=[
                dict(
                    encoder=dict(
                        type='transformers.CLIPVisionModel.from_pretrained',
                        pretrained_model_name_or_path='openai/clip-vit-large-patch14',
                        dtype='bfloat16',
                    ),
                    input_size=224,
                ),
                dict(
                    encoder=dict(
                        type='timm.create_model',
                        model_name='convnext_xxlarge.clip_laion2b_soup',
                        pretrained=True,
                        num_classes=0,
                    ),
                    input_size=256,
                ),
                dict(
                    encoder=dict(
                        type='transformers.Dinov2Model.from_pretrained',
                        pretrained_model_name_or_path='facebook/dinov2-giant',
                        dtype='bfloat16',
                    ),
                    input_size=224,
                    mean=imagenet_mean,
                    std=imagenet_std,
                ),
                # The vision model and the Q-Former of BLIP-2's first stage. transformers keeps the Q-Former in float32,
                # and FSDP needs one dtype for the whole encoder.
                dict(
                    encoder=dict(
                        type='transformers.Blip2VisionModelWithProjection.from_pretrained',
                        pretrained_model_name_or_path='Salesforce/blip2-itm-vit-g',
                    ),
                    input_size=224,
                ),
            ],
        ),
        neck=dict(
            type='EmbeddingMixNeck',
            in_channels=[1024, 3072, 1536],
            sequence_channels=[768],
            out_channels=4096,
            grid=16,
            class_token=True,
        ),
        trainable=['language_model', 'projector'],
        gradient_checkpointing=True,
    ),
    head=dict(type='SFTHead'),
    processor=processor,
    generation=dict(max_new_tokens=512),  # One box takes 25 tokens, and an answer may hold many.
)
