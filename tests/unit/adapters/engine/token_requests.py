"""Requests in tokens, and chunks of their prompts."""

from jaxserver.adapters.engine.requests import TokenRequest
from jaxserver.core.schedule import Chunk
from jaxserver.ports.types import SamplingParams


def token_request(request_id: int, prompt: tuple[int, ...]) -> TokenRequest:
    return TokenRequest(
        request_id=request_id,
        prompt=prompt,
        held=len(prompt),
        sampling=SamplingParams(temperature=0.5, top_k=7, top_p=1.0, logprobs=2),
        seed=2**40 + 3,
        limit=90,
        end_ids=frozenset({257, 5}),
        streaming=True,
    )


def chunk_of(request: TokenRequest, slot: int, span: tuple[int, int]) -> Chunk:
    start, end = span
    return Chunk(
        request_id=request.request_id,
        slot=slot,
        start=start,
        tokens=request.prompt[start:end],
        is_last=end == len(request.prompt),
        pages=(slot,),
        seat=None,
    )
