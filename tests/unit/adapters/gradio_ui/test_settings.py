"""Settings come from a browser, so nothing about them is taken for granted."""

from typing import Any

import pytest

from jaxserver.adapters.gradio_ui.settings import Settings, checked_text
from jaxserver.ports.errors import InvalidRequest
from jaxserver.ports.types import SamplingParams


def test_settings_become_sampling_parameters() -> None:
    settings = Settings(
        greedy=True, max_new_tokens=5, temperature=0.5, top_p=0.9, top_k=3
    )
    assert settings.sampling_params() == SamplingParams(
        greedy=True, max_new_tokens=5, temperature=0.5, top_p=0.9, top_k=3
    )
    assert Settings().sampling_params() == SamplingParams()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("system", None),
        ("greedy", "yes"),
        ("max_new_tokens", -1),
        ("temperature", -1),
        ("top_p", "0.5"),
        ("top_k", 1.5),
    ],
)
def test_a_wrong_setting_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: got "):
        Settings(**{field: value})


def test_text_is_text() -> None:
    assert checked_text("prompt", "a") == "a"
    with pytest.raises(InvalidRequest, match=r"^prompt: got int, allowed is text"):
        checked_text("prompt", 1)
