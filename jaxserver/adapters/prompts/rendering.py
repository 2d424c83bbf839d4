"""Renders a chat template in a sandbox, as transformers does."""

import functools
import json
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jaxserver.ports.errors import UnsupportedMessages

MAX_TEMPLATE_CHARACTERS = 2**20
MAX_PROMPT_CHARACTERS = 2**25
MAX_LOOPS = 100_000


class GenerationTag(Extension):
    """`{% generation %}` marks an answer for training; here it is its contents."""

    tags = {"generation"}  # noqa: RUF012  # so declared by jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(template: str, **values: Any) -> str:
    """The template's text for these values, within the limits above.

    Raises:
        UnsupportedMessages: The template cannot be read, goes beyond a limit, or
            refuses the values; the message has the template's own words.
    """
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise UnsupportedMessages(
            f"the model's chat template has {len(template)} characters, at most "
            f"{MAX_TEMPLATE_CHARACTERS} are read"
        )
    try:
        return _joined(_compiled(template).generate(**values, range=_limited_range()))
    except jinja2.TemplateSyntaxError as error:
        problem = f"cannot be read: {error.message} (line {error.lineno})"
    except Exception as error:  # a template is a program and may fail in any way
        problem = f"does not take these messages: {str(error) or type(error).__name__}"
    raise UnsupportedMessages(f"the model's chat template {problem}")


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationTag, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(template)


def _joined(pieces: Iterable[str]) -> str:
    texts, size = [], 0
    for text in pieces:
        size += len(text)
        if size > MAX_PROMPT_CHARACTERS:
            raise OverflowError(f"more than {MAX_PROMPT_CHARACTERS} characters")
        texts.append(text)
    return "".join(texts)


def _limited_range() -> Callable[..., range]:
    """A `range` that goes through `MAX_LOOPS` numbers in one rendering, all in all."""
    left = MAX_LOOPS

    def limited_range(*bounds: int) -> range:
        nonlocal left
        numbers = range(*bounds)
        left -= len(numbers)
        if left < 0:
            raise OverflowError(f"loops over more than {MAX_LOOPS} numbers")
        return numbers

    return limited_range


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    # jinja2's own filter escapes what is special in HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
