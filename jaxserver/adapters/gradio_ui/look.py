"""How the pages look: system fonts only, nothing fetched from anywhere."""

import html
from typing import Any

import gradio as gr

THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.teal,
    neutral_hue=gr.themes.colors.slate,
    radius_size=gr.themes.sizes.radius_lg,
    font=("system-ui", "sans-serif"),
    font_mono=("ui-monospace", "monospace"),
)

CSS = """
.gradio-container { width: 100%; max-width: 1200px !important; margin: 0 auto; }
.gradio-container > main { padding-top: .5rem !important; }
#top .prose { display: flex; flex-wrap: wrap; align-items: center; gap: .2rem 1rem; }
#top strong { font-size: 1.15rem; }
#top .model { flex: 1; color: var(--body-text-color-subdued); }
#top a {
  display: inline-block; padding: .25rem .8rem; border-radius: 2rem;
  color: var(--body-text-color); text-decoration: none;
}
#top a[aria-current] { background: var(--primary-600); color: white; }
#state p { padding: .5rem 1rem; border-radius: var(--radius-lg); margin: 0;
  background: var(--background-fill-secondary); }
#chatbot { height: calc(100dvh - 13.5rem) !important; min-height: 20rem; }
.gradio-container:has(#state) #chatbot { height: calc(100dvh - 17rem) !important; }
#prompt button {
  width: 2.1rem; height: 2.1rem; padding: .5rem; border-radius: 50%;
  background: var(--primary-600); color: white;
}
#under { align-items: center; }
#note p { margin: 0; font-size: .85rem; color: var(--body-text-color-subdued); }
#panel { align-self: flex-start; }
"""

WAITING = "waiting …"
_PAGES = (("gradio_chat", "Chat"), ("gradio_instruct", "Instruct"))


def header(model: str, here: str) -> gr.HTML:
    """The model's name and the way to the other page, as relative links."""
    links = "".join(
        f'<a href="../{path}/"{" aria-current=page" * (path == here)}>{name}</a>'
        for path, name in _PAGES
    )
    return gr.HTML(
        f'<strong>jaxserver</strong><span class="model">{html.escape(model)}</span>'
        f"<nav>{links}</nav>",
        elem_id="top",
        js_on_load=None,
    )


def note() -> gr.Markdown:
    """The line about tokens and speed."""
    return gr.Markdown(elem_id="note", min_height=24)


def stopped(note: object) -> str:
    """The line after Stop was pressed."""
    return "stopped" if note == WAITING else f"{note} · stopped"


def small_button(name: str, **more: Any) -> gr.Button:
    return gr.Button(
        name, size="sm", scale=0, min_width=88, elem_id=name.lower(), **more
    )
