"""The tokens that a tokenizer's settings put around a text."""

from collections.abc import Mapping

from tokenizers import Tokenizer, processors

MAX_TOKEN_CHARACTERS = 512
"""The time that the library takes for a special token grows by the square of this."""


def put_around(
    encoder: Tokenizer, begin: Mapping[str, int], end: Mapping[str, int]
) -> None:
    """Adds tokens, by text and id, to both ends of what is encoded from now on."""
    encoder.post_processor = processors.TemplateProcessing(
        single=[*begin, "$A", *end], special_tokens=list({**begin, **end}.items())
    )
