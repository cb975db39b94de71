"""Chat templates that mark what the model generates: the repository's, a file, or the processor's own."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..record_error import RecordError

FOLDER = Path(__file__).parents[1] / 'chat_templates'
# The template of a processor class that comes without one, and the first guess for one that does not mark answers.
CLASS_TEMPLATES = dict(
    LlavaProcessor='llava',
    LlavaNextProcessor='llava_next',
    PaliGemmaProcessor='paligemma',
    InternVLProcessor='internvl',
    SmolVLMProcessor='smolvlm',
    Idefics3Processor='smolvlm',
    Qwen2VLProcessor='qwen2_5_vl',
    Qwen2_5_VLProcessor='qwen2_5_vl',
    JanusProcessor='janus',
    Emu3Processor='emu3',
)
GENERATION_MARK = re.compile(r'\{%-?\s*generation\s*-?%\}')
QUESTION = dict(role='user', content=[dict(type='image'), dict(type='text', text='Q')])
ANSWER = dict(role='assistant', content=[dict(type='text', text='A')])


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template and what it may refer to.

    Attributes:
        name (str): For messages.
        text (str): The template, with its answers between ``{% generation %}`` and ``{% endgeneration %}``.
        variables (dict): ``image_token`` and the special tokens of the tokenizer.
        preamble (str): Put in front of every conversation.
    """

    name: str
    text: str
    variables: dict
    preamble: str = ''

    def render(self, messages: list[dict], generation_prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """Write a conversation down.

        Args:
            messages (list[dict]): In transformers' format.
            generation_prompt (bool): Whether to append what precedes an answer. Defaults to False.

        Returns:
            tuple: The text, and first and last (exclusive) character of each answer, its end-of-turn token included.

        Raises:
            RecordError: If the template refuses the conversation.
        """
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                [messages],
                chat_template=self.text,
                return_assistant_tokens_mask=True,
                add_generation_prompt=generation_prompt,
                **self.variables,
            )
        except (TemplateError, TypeError) as error:  # a template for plain strings adds a string to a list
            raise RecordError(f'the chat template {self.name!r} refuses the conversation: {error}') from error
        shift = len(self.preamble)
        return self.preamble + texts[0], [(start + shift, end + shift) for start, end in spans[0]]


def repository_templates() -> list[str]:
    """Names of the templates that come with this package."""
    return sorted(path.stem for path in FOLDER.glob('*.jinja'))


def read_template(name: str) -> str:
    """The text of one of them."""
    return (FOLDER / f'{name}.jinja').read_text(encoding='utf-8')


def find_chat_template(processor, chat_template: str | None = None) -> ChatTemplate:
    """Choose the template of a processor.

    Args:
        processor: A transformers processor.
        chat_template (str, optional): Name of a template of the repository, or path of a file. Defaults to None: the
            processor's own template if it marks answers and ends them with a special token; otherwise the
            repository's template that writes the same prompt as the processor's own; for a processor without any,
            the one of its class.

    Raises:
        ValueError: If the template does not exist, does not mark answers, or no template fits.
    """
    variables = dict(processor.tokenizer.special_tokens_map, image_token=image_token_of(processor))
    preamble = ''
    if getattr(processor, 'use_default_system_prompt', False):  # Janus writes it into every text.
        from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT as preamble
    if type(processor).__name__ == 'Emu3Processor':  # It writes the first token once per image; the tokenizer never.
        preamble = processor.bos_token

    def build(name: str, text: str) -> ChatTemplate:
        return ChatTemplate(name, text, variables, preamble)

    def from_repository(name: str) -> ChatTemplate:
        return build(name, read_template(name))

    if chat_template is not None:
        return _named(chat_template, from_repository, build)
    guess = CLASS_TEMPLATES.get(type(processor).__name__)
    own = getattr(processor, 'chat_template', None) or getattr(processor.tokenizer, 'chat_template', None)
    own = own.get('default') if isinstance(own, dict) else own
    if own is None:
        if guess is None:
            raise _no_template(processor, 'has no chat template')
        return from_repository(guess)
    own = build('of the processor', own)
    if GENERATION_MARK.search(own.text) and _closes_answers(own, processor.tokenizer):
        return own
    wanted = _prompt(own)
    for name in sorted(repository_templates(), key=lambda name: (name != guess, name)):
        candidate = from_repository(name)
        if wanted is not None and _prompt(candidate) == wanted:
            return candidate
    reason = 'ends no answer with a special token' if GENERATION_MARK.search(own.text) else 'marks no answers'
    raise _no_template(
        processor, f'has a chat template that {reason}, and writes a prompt unlike any here ({wanted!r})'
    )


def image_token_of(processor) -> str:
    """The placeholder of an image in a processor's text."""
    token = getattr(processor, 'image_token', None)
    if token is None:
        raise ValueError(
            f'EncodeConversation: {type(processor).__name__} has no image_token; use the processor of a '
            'vision-language model, such as dict(type="transformers.AutoProcessor.from_pretrained", ...).'
        )
    return str(token)


def _named(name: str, from_repository, build) -> ChatTemplate:
    if name in repository_templates():
        return from_repository(name)
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f'EncodeConversation: chat_template={name!r} is neither a file nor one of {repository_templates()}.'
        )
    text = path.read_text(encoding='utf-8')
    if not GENERATION_MARK.search(text):
        raise ValueError(
            f'EncodeConversation: chat_template={name!r} marks no answers; put {{% generation %}} ... '
            f'{{% endgeneration %}} around an answer and its end-of-turn token, or use one of {repository_templates()}.'
        )
    return build(name, text)


def _no_template(processor, what: str) -> ValueError:
    return ValueError(
        f'EncodeConversation: {type(processor).__name__} {what}, so labels cannot be found. Give chat_template=: one '
        f'of {repository_templates()}, or the path of a template with {{% generation %}} ... {{% endgeneration %}} '
        'around an answer and its end-of-turn token.'
    )


def _closes_answers(template: ChatTemplate, tokenizer) -> bool:
    try:
        text, spans = template.render([QUESTION, ANSWER])
    except RecordError:
        return False
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= set(tokenizer.all_special_tokens)
    return len(spans) == 1 and text[slice(*spans[0])].rstrip().endswith(tuple(special))


def _prompt(template: ChatTemplate) -> str | None:
    try:
        return template.render([QUESTION], generation_prompt=True)[0]
    except RecordError:
        return None
