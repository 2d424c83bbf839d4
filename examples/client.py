"""Asks a running server with nothing but `requests`: one instruction, then a chat."""

import sys
from typing import Any

import requests

TIMEOUT_SECONDS = 120


def instruct(url: str, prompt: str, system: str | None = None) -> dict[str, Any]:
    """One instruction, answered with the likeliest words."""
    body = {"prompt": prompt, "system": system, "greedy": True, "max_new_tokens": 48}
    return post(f"{url}/instruct", body)


def chat(url: str, prompt: str, history: list[list[str]]) -> dict[str, Any]:
    """The next turn of a conversation; the same seed gives the same answer again."""
    body = {"prompt": prompt, "history": history, "temperature": 0.7, "seed": 7}
    return post(f"{url}/chat", {**body, "greedy": False, "max_new_tokens": 48})


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    response = requests.post(url, json=body, timeout=TIMEOUT_SECONDS)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def main(url: str) -> None:
    first = "Name three colours."
    answer = instruct(url, first, system="You answer with a list.")
    print("The model read:", answer["input"])
    print("It answered:", answer["response"])
    print("Tokens:", answer["tokens_used"])

    history = [[first, answer["response"]]]
    print("And then:", chat(url, "Which is the warmest?", history)["response"])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:2059")
