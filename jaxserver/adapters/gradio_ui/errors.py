"""Turns what went wrong into a message on the page."""

import contextlib
import html
import logging
from collections.abc import Iterator

import gradio as gr

from jaxserver.ports.errors import JaxServerError

LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def errors_on_the_page() -> Iterator[None]:
    """Shows our errors with their own words, and any other without its inside.

    Gradio renders the message as HTML, hence the escape.
    """
    try:
        yield
    except JaxServerError as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from error
    except Exception as error:
        LOG.exception("a page's answer failed")
        text = "The answer failed inside the server; its log says more."
        raise gr.Error(text, print_exception=False) from error
