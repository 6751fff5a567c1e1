"""A word-level tokenizer with a chat template, as an ordinary Hugging Face fast tokenizer."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from experiments.organism.world import World

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
# The headers are ordinary words, so the statistics over prompt tokens include the assistant's header.
HEADERS = ("scene", "user", "assistant", ":")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message.role == 'system' %} scene : {{ message.content }}"
    "{% elif message.role == 'user' %} user : {{ message.content }}"
    "{% else %} assistant : {% generation %}{{ message.content }} {{ eos_token }}{% endgeneration %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %} assistant :{% endif %}"
)


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """The tokenizer of `world`: one token a word, words separated by blanks."""
    words = [*SPECIAL, *sorted({*HEADERS, *world.vocabulary})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
