"""Receipts of the default model, whose file has a published digest."""

from typing import Any

import httpx
import pytest

from jaxserver import GenerationRequest, JAXServer, SamplingParams
from jaxserver.adapters.checkpoints.packaged import PACKAGED_MODELS
from jaxserver.ports.config import DEFAULT_MODEL
from jaxserver.ports.receipt import Receipt

pytestmark = pytest.mark.model
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Name three rivers."}],
    "max_tokens": 24,
    "temperature": 1.0,
    "logprobs": True,
    "receipt": True,
}


def test_an_answer_over_http_is_made_again_in_python_from_its_receipt(
    loaded_server: JAXServer, server_url: str
) -> None:
    url = f"{server_url}/v1/chat/completions"
    answer = httpx.post(url, json=ASKED, timeout=120).json()
    receipt = Receipt.from_json(answer["receipt"])
    crowd = [
        loaded_server.generate(GenerationRequest(prompt=text, sampling=wish))
        for text in ("Once upon a time", "The capital of France is")
        for wish in (SamplingParams(max_new_tokens=9),) * 3
    ]
    again = list(loaded_server.generate(receipt.request))[-1].receipt

    assert again == receipt
    assert receipt.identity.weights == PACKAGED_MODELS[DEFAULT_MODEL].member_sha256
    assert answer["system_fingerprint"] == receipt.identity.fingerprint()
    assert all(list(stream)[-1].finish_reason for stream in crowd)
