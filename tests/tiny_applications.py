"""Models of the applications for tests: a SPHINX that knows one image by heart, and a SAM with random weights."""

import tiny_sphinx
import torch
from PIL import Image, ImageDraw

# What is in the picture: pixels xyxy, and height and width.
EXPRESSION, BOX, SIZE = 'the red square', (10, 20, 30, 36), (40, 60)


def picture():
    """A red square on grey."""
    image = Image.new('RGB', SIZE[::-1], (90, 100, 110))
    x1, y1, x2, y2 = BOX
    ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), fill=(220, 30, 30))
    return image


def save_sphinx(folder, answer=None):
    """Train a SPHINX to answer the expression with the box (or with `answer`), and write it with its processor."""
    from mmengine.registry import MODELS

    from mergemix_mm.datasets import GroundingTask
    from mergemix_mm.functional import boxes_to_square, format_boxes

    torch.manual_seed(0)
    arch = dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=16)
    vit = dict(type='mmpretrain.VisionTransformer', arch=arch, img_size=28, patch_size=14, out_type='raw')
    config = tiny_sphinx.sphinx_config(trainable=['language_model', 'projector', 'vision_tower'])
    config['backbone']['encoders'] = [dict(encoder=vit, frozen=False)]
    processor = tiny_sphinx.processor()
    tuner = MODELS.build(dict(type='VLMTuner', vlm=config, head=dict(type='SFTHead'), processor=processor))
    question = GroundingTask.INSTRUCTION.format(expression=EXPRESSION)
    answer = answer or format_boxes(boxes_to_square(torch.tensor([BOX]), SIZE).tolist())
    batch = tiny_sphinx.batch(processor, [([picture()], question, answer)])['inputs']
    optimizer = torch.optim.Adam(tuner.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss = tuner.loss(batch)['loss_sft']
        loss.backward()
        optimizer.step()
        if loss < 0.01:
            break
    tuner.vlm.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_sam(folder):
    """Write a SAM that sees images at 64 pixels, and its processor."""
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    torch.manual_seed(0)
    sizes, layers = dict(image_size=64, patch_size=16), dict(num_hidden_layers=2, num_attention_heads=2, mlp_dim=16)
    vision = dict(hidden_size=16, output_channels=16, num_pos_feats=8, window_size=2, global_attn_indexes=[1])
    config = SamConfig(
        vision_config=dict(vision, **sizes, **layers),
        prompt_encoder_config=dict(hidden_size=16, mask_input_channels=4, **sizes),
        mask_decoder_config=dict(hidden_size=16, iou_head_hidden_dim=16, **layers),
    )
    SamModel(config).save_pretrained(folder)
    image_processor = SamImageProcessor(
        size=dict(longest_edge=64),
        pad_size=dict(height=64, width=64),
        mask_size=dict(longest_edge=16),
        mask_pad_size=dict(height=16, width=16),
    )
    SamProcessor(image_processor).save_pretrained(folder)
