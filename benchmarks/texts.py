"""What servers are asked: words by chance, or code to edit."""

import importlib
import inspect
import itertools
import random
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

WORDS_PER_TOKEN = 0.95  # of the words below, in the vocabulary of the default model
CHARACTERS_PER_TOKEN = 2.6, 3.6  # fewest and most, of code in the same vocabulary
WORDS = (
    *("amber", "basket", "cedar", "dragon", "ember", "falcon", "garden", "harbor"),
    *("island", "jacket", "kettle", "lantern", "meadow", "needle", "orchard", "pepper"),
    *("quarry", "ribbon", "saddle", "timber", "umbrella", "velvet", "window", "yellow"),
)
MODULES = (
    *("argparse", "ast", "calendar", "configparser", "csv", "dataclasses", "datetime"),
    *("difflib", "dis", "doctest", "fractions", "gettext", "gzip", "heapq", "imaplib"),
    *("inspect", "ipaddress", "locale", "mailbox", "mimetypes", "optparse", "pathlib"),
    *("pdb", "pickle", "platform", "pprint", "pydoc", "random", "shutil", "smtplib"),
    *("statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap"),
    *("tokenize", "traceback", "turtle", "unittest.mock", "urllib.parse"),
    *("urllib.request", "uuid", "warnings", "weakref", "zipfile"),
)
"""Of Python's own library, whose functions are edited."""


def words(tokens: int, first: int = 0) -> Iterator[str]:
    """Texts that share no beginning, the same ones every time."""
    for number in itertools.count(first):
        chosen = random.Random(number).choices(WORDS, k=round(tokens * WORDS_PER_TOKEN))
        yield " ".join(chosen)


def edits(tokens: int, first: int = 0) -> Iterator[str]:
    """Functions of about that size that are to be written again with one change."""
    least, most = (round(tokens * each) for each in CHARACTERS_PER_TOKEN)
    fitting = (code for code in _functions() if least <= len(code) <= most)
    for number, code in enumerate(itertools.islice(fitting, first, None), first):
        name = WORDS[number % len(WORDS)]
        yield f"Write this function again, named {name}, and nothing else.\n\n{code}"


def _functions() -> Iterator[str]:
    """The sources of functions and methods, as Python lists them."""
    for name in MODULES:
        module = importlib.import_module(name)
        holders = [module, *_members(module, inspect.isclass, name)]
        for holder in holders:
            for function in _members(holder, inspect.isfunction, name):
                if function.__code__.co_filename == module.__file__:
                    yield textwrap.dedent(inspect.getsource(function))


def _members(holder: Any, kind: Callable[[Any], bool], module: str) -> list[Any]:
    found = inspect.getmembers(holder, kind)
    return [member for _, member in found if member.__module__ == module]


TEXTS: Mapping[str, Callable[[int, int], Iterator[str]]] = {
    "words": words,
    "edits": edits,
}
"""By the name that they are asked for with."""
