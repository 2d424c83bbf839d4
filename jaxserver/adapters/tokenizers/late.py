"""A tokenizer that is asked for each time it is used, since the model comes later."""

import dataclasses
from collections.abc import Callable, Sequence

from jaxserver.ports.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class LateTokenizer:
    """Asks for the tokenizer to use; who is asked may say `NotReady`."""

    choose: Callable[[], Tokenizer]

    @property
    def vocab_size(self) -> int:
        return self.choose().vocab_size

    @property
    def bos_id(self) -> int | None:
        return self.choose().bos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        return self.choose().eos_ids

    @property
    def strips_leading_space(self) -> bool:
        return self.choose().strips_leading_space

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self.choose().encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        return self.choose().decode(ids)

    def token_bytes(self, token: int) -> bytes:
        return self.choose().token_bytes(token)
