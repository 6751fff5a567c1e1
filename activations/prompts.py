"""Prompts, and the roles that positions have in them; nothing here imports torch."""

from dataclasses import dataclass
from enum import IntEnum

from activations.errors import UserError

Message = dict[str, str]


class Role(IntEnum):
    """What a position is, as stored beside its activation."""

    SPECIAL = 0  # BOS, EOS, turn markers: any id that decoding with skip_special_tokens drops
    PROMPT = 1
    LAST_PROMPT = 2  # the last non-special token before the answer; chat prompts only
    ANSWER = 3


PROMPT_ROLES = (Role.PROMPT, Role.LAST_PROMPT)
NON_SPECIAL = (Role.PROMPT, Role.LAST_PROMPT, Role.ANSWER)


@dataclass(frozen=True)
class Prompt:
    """One prompt: either a conversation or plain text.

    Attributes:
        id: Name of the prompt, unique within a batch.
        messages: Conversation, each message with "role" and "content". It ends with a user turn, or with an assistant
            turn, which is then the answer.
        text: Plain text, read without a chat template.
        answer: Answer to append: an assistant turn after `messages`, or a verbatim continuation of `text`.
    """

    id: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    answer: str | None = None

    @classmethod
    def chat(cls, id: str, user: str, system: str | None = None, answer: str | None = None) -> "Prompt":
        """A single user turn, after an optional system message."""
        head = ({"role": "system", "content": system},) if system is not None else ()
        return cls(id, messages=(*head, {"role": "user", "content": user}), answer=answer)

    @classmethod
    def plain(cls, id: str, text: str) -> "Prompt":
        """Plain text, without a chat template."""
        return cls(id, text=text)


def require_content(prompt: Prompt) -> None:
    """Checks what can be checked of a prompt without a tokenizer.

    Raises:
        UserError: for a prompt that is empty, has both messages and text or neither, or has two answers.
    """
    if (prompt.text is None) == (not prompt.messages):
        raise UserError(f"Prompt '{prompt.id}' needs either messages or text, and not both; correct it.")
    contents = [prompt.text] if prompt.text is not None else [m["content"] for m in prompt.messages]
    if not all(content.strip() for content in contents):
        raise UserError(f"Prompt '{prompt.id}' is empty; give it words or leave it out.")
    if prompt.messages and prompt.messages[-1]["role"] == "assistant" and prompt.answer is not None:
        raise UserError(f"Prompt '{prompt.id}' ends with an assistant turn and has an answer too; give one of the two.")
