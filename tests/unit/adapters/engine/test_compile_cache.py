from collections.abc import Callable
from pathlib import Path

import pytest

from jaxserver.adapters.engine.compile_cache import CheckedCache

CODE = bytes(range(256)) * 4
BREAK: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "begun": lambda content: content[:20],
    "cut short": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "rotten": lambda content: content[:500] + b"?" + content[501:],
    "of JAX's own cache": lambda content: CODE,
}


def test_what_is_put_into_the_cache_is_there(tmp_path: Path) -> None:
    CheckedCache(str(tmp_path), max_size=-1).put("key", CODE)
    again = CheckedCache(str(tmp_path), max_size=-1)
    assert again.get("key") == CODE
    assert again.get("another key") is None


@pytest.mark.parametrize("how", BREAK)
def test_a_broken_entry_is_not_there_and_is_put_anew(tmp_path: Path, how: str) -> None:
    cache = CheckedCache(str(tmp_path), max_size=-1)
    cache.put("key", CODE)
    (file,) = tmp_path.iterdir()
    file.write_bytes(BREAK[how](file.read_bytes()))

    assert cache.get("key") is None
    cache.put("key", CODE)
    assert cache.get("key") == CODE


@pytest.mark.parametrize("how", ["empty", "rotten"])
def test_a_broken_entry_counts_for_nothing_where_room_is_short(
    tmp_path: Path, how: str
) -> None:
    cache = CheckedCache(str(tmp_path), max_size=3000)
    cache.put("key", CODE)
    (file,) = tmp_path.glob("key-cache")
    file.write_bytes(BREAK[how](file.read_bytes()))
    assert cache.get("key") is None
    for key in ("key", "second", "third", "fourth"):
        cache.put(key, CODE)

    assert cache.get("fourth") == CODE
    assert sum(path.stat().st_size for path in tmp_path.glob("*-cache")) <= 3000
