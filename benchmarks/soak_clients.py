"""Clients of every kind, polite and rude, and what became of what they asked."""

import asyncio
import collections
import contextlib
import dataclasses
import json
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import httpx

from benchmarks.load import DONE
from benchmarks.texts import WORDS

AT_ONCE = 200
"""Connections of a burst."""
PATIENCE_SECONDS = 300.0
LONGEST_TEXT = 60
"""In words."""
LONGEST_STALL_SECONDS = 6.0
LONGEST_PAUSE_SECONDS = 0.15
"""Between the pieces of a slow upload."""
HUGE_BYTES = 9 << 20
"""More than the server takes as a body."""

Body: TypeAlias = dict[str, Any]


class Wrong(Exception):
    """A well-formed request was not answered, or rubbish was."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tally:
    """What became of all requests.

    Attributes:
        counts: How many, by the kind of client and what came of it.
        wrongs: In words, for every request that ended as it must not.
    """

    counts: collections.Counter[tuple[str, str]] = dataclasses.field(
        default_factory=collections.Counter
    )
    wrongs: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Town:
    """Where clients live.

    Attributes:
        http: For those who keep to the rules.
        address: Of the server, for those who do not.
    """

    http: httpx.AsyncClient
    address: tuple[str, int]
    rng: random.Random
    tally: Tally


Client: TypeAlias = Callable[[Town], Awaitable[str]]
"""Does one thing, and says what came of it; or raises `Wrong`."""


async def let(town: Town, kind: str, client: Client) -> None:
    """Has one client do its thing, and counts what came of it."""
    try:
        outcome = await client(town)
    except (Wrong, OSError, httpx.HTTPError, TimeoutError) as error:
        outcome = "wrong"
        town.tally.wrongs.append(f"{kind}: {type(error).__name__}: {error}")
    town.tally.counts[kind, outcome] += 1


def judged(status: int, retry_after: str | None, text: str, *, streamed: bool) -> str:
    """What a well-formed request has come to.

    Raises:
        Wrong: It was neither answered as a whole nor refused with a time to come back.
    """
    if status in {429, 503} and retry_after is not None and retry_after.isdecimal():
        return "refused"
    if status != 200:
        raise Wrong(f"{status} {text[:200]}")
    if streamed and (f"data: {DONE}" not in text or '"error":' in text):
        raise Wrong(f"the stream broke off after {text[-200:]}")
    return "answered"


def text_of(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, LONGEST_TEXT)))


def sampling(rng: random.Random, length_field: str) -> Body:
    wishes: Body = {length_field: rng.randint(1, 24), "stream": rng.random() < 0.5}
    maybe: Body = {
        "temperature": rng.choice((0, 0.3, 1.0, 2.0)),
        "top_p": rng.choice((0.5, 0.9, 1.0)),
        "top_k": rng.choice((0, 1, 40)),
        "seed": rng.getrandbits(64),
        "stop": rng.sample(WORDS, 2),
    }
    return wishes | {key: value for key, value in maybe.items() if rng.random() < 0.4}


def chat_completion(rng: random.Random) -> Body:
    reported = {"logprobs": True, "top_logprobs": rng.randint(0, 20)}
    turns = [{"role": "user", "content": text_of(rng)}]
    if rng.random() < 0.3:
        turns.insert(0, {"role": "system", "content": text_of(rng)})
    more = reported if rng.random() < 0.2 else {}
    return {"messages": turns, **sampling(rng, "max_tokens"), **more}


def completion(rng: random.Random) -> Body:
    prompt: Any = text_of(rng)
    if rng.random() < 0.3:
        prompt = [rng.randint(0, 200) for _ in range(rng.randint(1, 80))]
    more = {"presence_penalty": 0.5, "logit_bias": {"17": 2.5}, "logprobs": 3}
    wishes = {key: value for key, value in more.items() if rng.random() < 0.2}
    return {"prompt": prompt, **sampling(rng, "max_tokens"), **wishes}


def instruction(rng: random.Random) -> Body:
    return {"prompt": text_of(rng), **sampling(rng, "max_new_tokens")}


def turn(rng: random.Random) -> Body:
    history = [[text_of(rng), text_of(rng)] for _ in range(rng.randint(0, 2))]
    return {"history": history, **instruction(rng)}


ROUTES: Mapping[str, Callable[[random.Random], Body]] = {
    "/v1/chat/completions": chat_completion,
    "/v1/completions": completion,
    "/instruct": instruction,
    "/chat": turn,
}
SMALL_ROUTES: Mapping[str, Callable[[random.Random], Body]] = {
    "/tokenize": lambda rng: {"text": text_of(rng)},
    "/detokenize": lambda rng: {"tokens": [rng.randint(0, 99) for _ in range(9)]},
}
READ_ROUTES = (
    "/status",
    "/health",
    "/ready",
    "/metrics",
    "/v1/models",
    "/openapi.json",
)


async def posts(town: Town) -> str:
    """Asks for an answer, and reads it."""
    path = town.rng.choice([*ROUTES])
    return await post(town.http, path, ROUTES[path](town.rng))


async def post(http: httpx.AsyncClient, path: str, body: Body) -> str:
    answer = await http.post(path, json=body)
    waits = answer.headers.get("retry-after")
    streamed = bool(body.get("stream"))
    return judged(answer.status_code, waits, answer.text, streamed=streamed)


async def looks(town: Town) -> str:
    """Asks for what needs no model's step."""
    if town.rng.random() < 0.5:
        path = town.rng.choice([*SMALL_ROUTES])
        return await post(town.http, path, SMALL_ROUTES[path](town.rng))
    answer = await town.http.get(town.rng.choice(READ_ROUTES))
    return judged(answer.status_code, None, answer.text, streamed=False)


async def comes_in_crowds(town: Town) -> str:
    """As many as `AT_ONCE` connections at the same time, each with a request."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    bodies: list[Body] = [
        {"prompt": town.rng.choice(WORDS), "max_tokens": 2, "stream": number % 2 == 0}
        for number in range(AT_ONCE)
    ]
    async with httpx.AsyncClient(
        base_url=town.http.base_url,
        timeout=PATIENCE_SECONDS,
        limits=limits,
        trust_env=False,
    ) as http:
        crowd = dataclasses.replace(town, http=http)

        def asking(body: Body) -> Client:
            return lambda town: post(town.http, "/v1/completions", body)

        async with asyncio.TaskGroup() as group:
            for body in bodies:
                group.create_task(let(crowd, "one of a crowd", asking(body)))
    return "done"


@contextlib.asynccontextmanager
async def connected(
    town: Town, *, reads_little: bool = False
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection of one's own, which is broken off at the end."""
    raw = socket.socket()
    raw.setblocking(False)
    if reads_little:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    await asyncio.get_running_loop().sock_connect(raw, town.address)
    reader, writer = await asyncio.open_connection(sock=raw, limit=2048)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def written(path: str, body: bytes, method: str = "POST") -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def any_request(town: Town, **fixed: Any) -> tuple[bytes, bool]:
    """A well-formed request, and whether it wants a stream."""
    path = town.rng.choice([*ROUTES])
    body = ROUTES[path](town.rng) | fixed
    return written(path, json.dumps(body).encode()), bool(body["stream"])


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, str | None, str]:
    """Status, `Retry-After` and everything; a closed connection has status 0."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        text = (await reader.read(-1)).decode(errors="replace")
    if not text:
        return 0, None, text
    head = text.partition("\r\n\r\n")[0].lower().split("\r\n")
    fields = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
    return int(head[0].split()[1]), fields.get("retry-after"), text


async def leaves(town: Town) -> str:
    """Goes away while it waits, or in the middle of its answer."""
    request, _ = any_request(town)
    async with connected(town) as (reader, writer):
        writer.write(request)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(town.rng.uniform(0, 3)):
                for _ in range(town.rng.randint(0, 4)):
                    await reader.read(200)
    return "left"


async def stalls(town: Town) -> str:
    """Reads nothing of a stream for a while, and then all of it or no more."""
    request, _ = any_request(town, stream=True)
    async with connected(town, reads_little=True) as (reader, writer):
        writer.write(request)
        await asyncio.sleep(town.rng.uniform(0, LONGEST_STALL_SECONDS))
        if town.rng.random() < 0.5:
            return "left"
        status, waits, text = await answer_of(reader)
    return judged(status, waits, text, streamed=True)


async def uploads_slowly(town: Town) -> str:
    """Sends a few bytes now and then, and perhaps never the last ones."""
    request, streamed = any_request(town)
    stays = town.rng.random() < 0.6
    end = len(request) if stays else town.rng.randint(1, len(request) - 1)
    async with connected(town) as (reader, writer):
        while request[:end]:
            size = town.rng.randint(1, 12)
            writer.write(request[: min(size, end)])
            await writer.drain()
            request, end = request[size:], end - size
            await asyncio.sleep(town.rng.uniform(0, LONGEST_PAUSE_SECONDS))
            if end <= 0:
                break
        if not stays:
            return "left"
        status, waits, text = await answer_of(reader)
    return judged(status, waits, text, streamed=streamed)


async def talks_rubbish(town: Town) -> str:
    """Is refused with a 4xx, or hung up on."""
    request = town.rng.choice(RUBBISH)(town.rng)
    async with connected(town) as (reader, writer):
        writer.write(request)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        try:
            status, _, text = await answer_of(reader)
        except ConnectionError:
            return "hung up on"
    if status and not 400 <= status < 500:
        raise Wrong(f"{status} for {request[:200]!r}: {text[:200]}")
    return "refused" if status else "hung up on"


def bad_body(rng: random.Random) -> bytes:
    """Not JSON, or JSON that no route takes."""
    value: Any = rng.choice(
        (None, -1, 1e300, "x", [], {}, [[]], True, {"a": {"b": []}})
    )
    field = rng.choice(("messages", "prompt", "temperature", "seed", "stop", "colour"))
    return rng.choice(
        (
            rng.randbytes(rng.randint(0, 400)),
            b'{"prompt": "a", "prompt',
            b"[" * 20_000,
            b'{"prompt": "\xff\xfe"}',
            b'{"prompt": "a", "temperature": NaN}',
            json.dumps({"prompt": 5, field: value}).encode(),
            json.dumps(value).encode(),
        )
    )


RUBBISH: tuple[Callable[[random.Random], bytes], ...] = (
    lambda rng: written(rng.choice([*ROUTES]), bad_body(rng)),
    lambda rng: written(rng.choice([*SMALL_ROUTES]), bad_body(rng)),
    lambda rng: written("/v1/completions", b" " * HUGE_BYTES),
    lambda rng: written("/chat", b"")[:-4] + b"\r\nContent-Length: -5\r\n\r\n",
    lambda rng: written("/v1/../../etc/passwd", b"", "GET"),
    lambda rng: written("/instruct", b"{}", rng.choice(("PUT", "DELETE", "BREW"))),
    lambda rng: b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
    lambda rng: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200),
    lambda rng: rng.randbytes(rng.randint(1, 400)) + b"\r\n\r\n",
)

CLIENTS: Mapping[str, tuple[Client, int]] = {
    "asks": (posts, 40),
    "looks": (looks, 15),
    "leaves": (leaves, 15),
    "stalls": (stalls, 8),
    "uploads slowly": (uploads_slowly, 8),
    "talks rubbish": (talks_rubbish, 14),
}
"""Each with how often it comes."""
