"""How a byte-level vocabulary wants text split before its merges, by GGUF name."""

import dataclasses
import reprlib

from tokenizers import Regex, pre_tokenizers

from jaxserver.ports.errors import UnsupportedModel

# A contraction, letters with at most one other character before them, digits, signs
# with the line ends after them, line ends, spaces: what GPT-4's tokenizer came up with.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What stands before the merges of one kind of vocabulary.

    Attributes:
        words: A regular expression of the pieces; None for GPT-2's.
        single_digits: Every digit is a piece of its own, before anything else.
        composes: Letters and their accents are put together first (Unicode's NFC).
        whole_words_first: A piece that is a token needs no merges.
        adds_bos: A text begins with a beginning-of-text token unless the file says no.
    """

    words: str | None = None
    single_digits: bool = False
    composes: bool = False
    whole_words_first: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        use_regex = self.words is None
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)]
        if self.words is not None:
            steps.insert(0, pre_tokenizers.Split(Regex(self.words), "isolated"))
        if self.single_digits:
            steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
        return pre_tokenizers.Sequence(steps)


_GPT2 = Split()
_SINGLE_DIGITS = Split(single_digits=True)
_LLAMA3 = Split(
    words=_WORDS.replace("DIGITS", r"\p{N}{1,3}"), whole_words_first=True, adds_bos=True
)
_QWEN2 = Split(words=_WORDS.replace("DIGITS", r"\p{N}"), composes=True)

SPLITS = {
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
}


def split_named(name: object) -> Split:
    """The split of a `tokenizer.ggml.pre`.

    Raises:
        UnsupportedModel: The name is unknown; to guess would split silently wrong.
    """
    if not isinstance(name, str) or name not in SPLITS:
        raise UnsupportedModel(
            f"a model whose tokenizer.ggml.pre is {reprlib.repr(name)}",
            ", ".join(sorted(SPLITS)),
        )
    return SPLITS[name]
