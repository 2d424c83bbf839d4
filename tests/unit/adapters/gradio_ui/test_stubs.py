"""Gradio is imported without the stubs that it writes for editors."""

import subprocess
import sys
import textwrap

SCRIPT = textwrap.dedent(
    """
    import ast

    parse, parsed = ast.parse, []
    ast.parse = lambda source, *rest, **more: parsed.append(1) or parse(source, *rest)
    import {first}
    import gradio as gr

    print(len(parsed), gr.Textbox.__name__, gr.Chatbot.change is not None)
    """
)


def components_parsed(first: str) -> int:
    script = SCRIPT.format(first=first)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    count, *rest = done.stdout.split()
    assert rest == ["Textbox", "True"]
    return int(count)


def test_gradio_parses_none_of_its_own_components() -> None:
    """So that one sees when it goes another way, both are counted."""
    with_stubs, without = map(
        components_parsed, ("sys", "jaxserver.adapters.gradio_ui")
    )
    assert with_stubs > 50
    assert without < 20
