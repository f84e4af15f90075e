"""The special tokens of o200k_harmony, gpt-oss's vocabulary.

Source: openai/harmony docs/format.md and tiktoken's ``o200k_harmony``. Ids below FIRST_SPECIAL are
text; ids from there on are special, and those without a name are reserved.
"""

from typing import Final

FIRST_SPECIAL: Final = 199998
VOCABULARY_SIZE: Final = 201088

START_OF_TEXT: Final = 199998
END_OF_TEXT: Final = 199999
RETURN: Final = 200002
CONSTRAIN: Final = 200003
CHANNEL: Final = 200005
START: Final = 200006
END: Final = 200007
MESSAGE: Final = 200008
CALL: Final = 200012
END_OF_PROMPT: Final = 200018

_NAMED: Final = {
    "<|startoftext|>": START_OF_TEXT,
    "<|endoftext|>": END_OF_TEXT,
    "<|return|>": RETURN,
    "<|constrain|>": CONSTRAIN,
    "<|channel|>": CHANNEL,
    "<|start|>": START,
    "<|end|>": END,
    "<|message|>": MESSAGE,
    "<|call|>": CALL,
    "<|endofprompt|>": END_OF_PROMPT,
}

SPECIAL_TOKENS: Final[dict[str, int]] = _NAMED | {
    f"<|reserved_{i}|>": i
    for i in range(FIRST_SPECIAL, VOCABULARY_SIZE)
    if i not in _NAMED.values()
}
"""Every special token by its text; the ids FIRST_SPECIAL to VOCABULARY_SIZE - 1, each once."""
