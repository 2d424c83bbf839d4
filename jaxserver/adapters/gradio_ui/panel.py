"""The settings beside a page, with the configuration's defaults."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from jaxserver.adapters.gradio_ui.settings import Settings
from jaxserver.ports.config import ServerConfig


class Panel:
    """Shows the settings; made inside the layout it stands in.

    Without `with_sampling` there are no sliders for what would not be applied.
    """

    def __init__(self, config: ServerConfig, *, with_sampling: bool) -> None:
        self._fields: dict[str, Any] = {
            "system": gr.Textbox(
                label="System prompt",
                placeholder="How the model should behave",
                lines=3,
                max_lines=8,
                elem_id="system",
            ),
            "greedy": gr.Checkbox(
                label="Greedy", info="Always the likeliest token", elem_id="greedy"
            ),
            "max_new_tokens": gr.Slider(
                1,
                config.max_length,
                value=min(config.max_new_tokens, config.max_length),
                step=1,
                label="Most new tokens",
                elem_id="max_new_tokens",
            ),
        }
        if with_sampling:
            self._fields |= _sampling_sliders(config)

    @property
    def components(self) -> list[Any]:
        return list(self._fields.values())

    def settings(self, values: Sequence[Any]) -> Settings:
        """Settings from the components' values, in their order."""
        return Settings(**dict(zip(self._fields, values, strict=True)))


def _sampling_sliders(config: ServerConfig) -> dict[str, gr.Slider]:
    return {
        "temperature": gr.Slider(
            0,
            max(2, config.temperature),
            value=config.temperature,
            step=0.05,
            label="Temperature",
            elem_id="temperature",
        ),
        "top_p": gr.Slider(
            0, 1, value=config.top_p, step=0.01, label="Top p", elem_id="top_p"
        ),
        "top_k": gr.Slider(
            0,
            max(200, config.top_k),
            value=config.top_k,
            step=1,
            label="Top k",
            info="0 keeps all tokens",
            elem_id="top_k",
        ),
    }
