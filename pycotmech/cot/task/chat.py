"""The text that a tokenizer's chat template writes around a prompt, as reasoning models are used."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Template = Literal["chat"]

_THINK = "<think>"
_USER, _ASSISTANT = "usersaysthis", "assistantsaysthis"
# Some templates write the day of the call; this one is what those of Llama 3 write by default.
_FIXED = {"date_string": "26 Jul 2024"}


class Chat(NamedTuple):
    """The text before the user's message, between it and the solution, and what separates the two turns' words.

    front: from the beginning of the text (a BOS that the template writes, a system message) to the user's message.
    opening: from the end of the message to the solution, without a space at its end: the assistant's header and, if asked for,
        an opened `<think>` block. joint: " " if a space stands before the solution, otherwise "".
    bos: whether `front` begins with the tokenizer's BOS.
    """

    front: str
    opening: str
    joint: str
    bos: bool


def read_chat(tokenizer: Any, think: bool) -> Chat:
    """Returns what the tokenizer's chat template writes around one user's message, ready for the assistant's words.

    think: whether the assistant's words stand in a `<think>` block that is not closed. It is given to the template as
        `enable_thinking`, and the block is opened after the template's text if the template does not do so itself.
    Raises ValueError if there is no template, if it fails, if it does not repeat a message as it is, or if think is False and
    the template opens a block.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "template: got 'chat', but the tokenizer has no chat template; expected one with `tokenizer.chat_template` set, or "
            "template=None for plain text"
        )
    text = _applied(tokenizer, think, [("user", _USER)], prompt=True)
    if text.count(_USER) != 1:
        raise ValueError(
            f"template: the tokenizer's chat template writes the user's message {text.count(_USER)} times; expected once"
        )
    front, opening = text.split(_USER)
    opened = opening.rstrip().endswith(_THINK)
    if opened and not think:
        raise ValueError("think: got False, but the tokenizer's chat template opens a <think> block itself; expected True")
    joint = ""
    if think and not opened:
        opening += f"{_THINK}\n"
    elif not opened and opening == opening.rstrip():
        joint = _space_before_words(tokenizer, think, opening)
    if opening.endswith(" "):
        opening, joint = opening.rstrip(" "), opening[len(opening.rstrip(" ")) :]
    if len(joint) > 1:
        raise ValueError(
            f"template: the tokenizer's chat template has {joint!r} before the assistant's words; expected one space at most"
        )
    bos = getattr(tokenizer, "bos_token", None)
    return Chat(front, opening, joint, bool(bos) and front.startswith(bos))


def check_message(tokenizer: Any, chat: Chat, think: bool, message: str) -> None:
    """Raises ValueError if the template does not repeat this message as it is."""
    text = _applied(tokenizer, think, [("user", message)], prompt=True)
    if not text.startswith(chat.front + message + chat.opening.removesuffix(f"{_THINK}\n")):
        raise ValueError(
            "template: the tokenizer's chat template changes the user's message; expected it to repeat it as it is"
        )


def _space_before_words(tokenizer: Any, think: bool, opening: str) -> str:
    """The space that the template has before the words of an assistant's turn and leaves out where the model is to go on."""
    try:
        text = _applied(tokenizer, think, [("user", _USER), ("assistant", _ASSISTANT)], prompt=False)
    except ValueError:  # a template of single turns
        return ""
    between = text.partition(_USER)[2].partition(_ASSISTANT)[0]
    return " " if between == opening + " " else ""


def _applied(tokenizer: Any, think: bool, turns: list[tuple[str, str]], *, prompt: bool) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, enable_thinking=think, **_FIXED
        )
    except Exception as error:  # templates are programs of their own, which raise what they like
        raise ValueError(f"template: the tokenizer's chat template fails on {turns[0][0]!r} messages: {error}") from error
