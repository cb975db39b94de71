"""SmolVLM."""

from ._parts import text_config, token_ids, tower_config

SHARED = dict(idefics3=dict(vision_config=dict(model_type='idefics3_vision')))
SPECIAL_TOKENS = (
    '<|im_end|>',
    '<|im_start|>',
    '<end_of_utterance>',
    '<|endoftext|>',
    '<fake_token_around_image>',
    '<image>',
    '<global-img>',
    *(f'<row_{row}_col_{col}>' for row in range(1, 4) for col in range(1, 4)),
)
NAMED_TOKENS = dict(
    fake_image_token='<fake_token_around_image>',
    image_token='<image>',
    global_image_token='<global-img>',
    end_of_utterance_token='<end_of_utterance>',
)
TOKENIZER = 'PreTrainedTokenizerFast'
NESTS_IMAGES = True
ONE_RUN = False
LARGEST_IMAGE = (84, 84), dict(size=dict(longest_edge=84), max_image_size=dict(longest_edge=28))
WRITTEN = (
    '<|im_start|>User:<image>Q<end_of_utterance>\nAssistant:[ A<end_of_utterance>]\n'
    'User: R<end_of_utterance>\nAssistant:[ B<end_of_utterance>]\n'
)


def config():
    _mend_small_patches()
    text = text_config(SPECIAL_TOKENS, model_type='llama')
    return dict(
        vision_config=tower_config(model_type='smolvlm_vision'),
        text_config=text,
        image_token_id=token_ids(SPECIAL_TOKENS)['<image>'],
        scale_factor=2,
        pad_token_id=text['pad_token_id'],
        tie_word_embeddings=False,
    )


def processor(tokenizer):
    import pytest

    pytest.importorskip('num2words')  # The class asks for it, and writes numbers of films with it.
    from transformers import SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    sizes = dict(size=dict(longest_edge=84), max_image_size=dict(longest_edge=28))
    # The video processor's defaults lack what it reads at construction.
    videos = SmolVLMVideoProcessor(**sizes, video_sampling=dict(fps=1, max_frames=4, video_size=dict(longest_edge=28)))
    return SmolVLMProcessor(SmolVLMImageProcessor(**sizes), tokenizer, videos, image_seq_len=4)


def _mend_small_patches():
    """Let SmolVLM of transformers 5.17 and 5.20 merge image tokens by views.

    It takes as many at a time as a patch has pixels on a side, which divides the tokens of a view only in real sizes.
    """
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMModel

    merge = getattr(SmolVLMModel, 'inputs_merger', None)
    if merge is None or hasattr(merge, 'mended'):
        return

    def by_views(self, input_ids, inputs_embeds, image_hidden_states):
        config = self.config.vision_config
        patch_size = config.patch_size
        config.patch_size = (config.image_size // patch_size // self.config.scale_factor) ** 2
        try:
            return merge(self, input_ids, inputs_embeds, image_hidden_states)
        finally:
            config.patch_size = patch_size

    by_views.mended = True
    SmolVLMModel.inputs_merger = by_views
