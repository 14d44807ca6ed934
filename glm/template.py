"""GLM-4's chat template, loss mask and stop ids: the only place that knows them.

Everything is built as ids. A prompt is `[gMASK]<sop>` and, for each turn, `<|role|>`, a newline and the content, each
encoded alone; it ends with `<|assistant|>`. A completion is a sequence of pieces, each encoded alone, and the stop id.
An assistant's turn ends with the next role's marker, so the trained stop id is `<|user|>`.

It does not know what the turns say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from yaofang.vocab.errors import InputError

PREFIX = ("[gMASK]", "<sop>")
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>", "observation": "<|observation|>"}
END_OF_TEXT = "<|endoftext|>"
STOP = ROLES["user"]
STOPS = (END_OF_TEXT, STOP, ROLES["observation"])
SPECIAL = (END_OF_TEXT, "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", *ROLES.values())


class ChatTemplate:
    """Turns messages into prompt ids and answers into completion ids for one tokenizer.

    `tokenizer` is a transformers fast tokenizer with GLM-4's special tokens. Raises InputError if one is missing.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        # A copy of its own: the flag that keeps `<|assistant|>` in a text from becoming a marker is state of the tokenizer.
        self._text = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._text.encode_special_tokens = True
        self._text.no_padding()
        self._text.no_truncation()
        self.prefix = tuple(self._special(name) for name in PREFIX)
        self.roles = {role: self._special(name) for role, name in ROLES.items()}
        self.stop_ids = tuple(self._special(name) for name in STOPS)
        self.stop_id = self._special(STOP)
        self.pad_id = self._special(END_OF_TEXT)

    def _special(self, name: str) -> int:
        found = self._text.token_to_id(name)
        if found is None:
            raise InputError(f"the tokenizer has no token {name}", way_out="Use the tokenizer of a GLM-4 model (-hf form).")
        return int(found)

    @property
    def size(self) -> int:
        """Number of ids the tokenizer knows; rows of the model beyond it were never trained."""
        return int(self._text.get_vocab_size(with_added_tokens=True))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Every added token: markers that plain text never contains."""
        return frozenset(int(i) for i in self._text.get_added_tokens_decoder())

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. Nothing is added, and a special token's name typed into the text stays text."""
        # The call for batches looks for no offsets, and lets other threads work meanwhile.
        (found,) = self._text.encode_batch_fast([text], add_special_tokens=False)
        return list(found.ids)

    def count(self, text: str) -> int:
        """Number of tokens of plain text."""
        return len(self.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of whole pieces; markers are left out. Half a character decodes to U+FFFD."""
        plain = [int(i) for i in ids if int(i) not in self.special_ids]
        return str(self._text.decode(plain, skip_special_tokens=False))

    def prompt_ids(self, messages: Iterable[Mapping[str, str]]) -> list[int]:
        """`[gMASK]<sop>`, the turns and `<|assistant|>`. Raises InputError for an unknown role."""
        ids = list(self.prefix)
        for message in messages:
            if message["role"] not in self.roles:
                raise InputError(f"unknown role {message['role']!r}", way_out=f"Roles are {', '.join(self.roles)}.")
            ids += [self.roles[message["role"]], *self.encode("\n"), *self.encode(message["content"].strip())]
        return [*ids, self.roles["assistant"]]

    def completion_ids(self, pieces: Iterable[str]) -> list[int]:
        """The pieces, each encoded alone, then the stop id."""
        return [*(i for piece in pieces for i in self.encode(piece)), self.stop_id]

    def example(self, messages: Iterable[Mapping[str, str]], pieces: Iterable[str]) -> tuple[list[int], list[int]]:
        """Input ids and completion mask of one training example: 1 on the completion with its stop id, 0 on the prompt."""
        prompt, completion = self.prompt_ids(messages), self.completion_ids(pieces)
        return prompt + completion, [0] * len(prompt) + [1] * len(completion)

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes of every id, in order of ids; empty for special tokens. Length `size`."""
        table = _byte_of_character()
        special = self.special_ids
        names = (self._text.id_to_token(i) if i not in special else None for i in range(self.size))
        return tuple(bytes(table[c] for c in name) if name else b"" for name in names)

    def ids_containing(self, text: str) -> list[int]:
        """Ids whose own bytes contain the text, such as every token with a newline in it."""
        wanted = text.encode()
        return [i for i, value in enumerate(self.token_bytes) if wanted in value]


def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: printable bytes stand for themselves, the others for characters from U+0100 on."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in kept}
    others = (byte for byte in range(256) if byte not in kept)
    table.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return table
