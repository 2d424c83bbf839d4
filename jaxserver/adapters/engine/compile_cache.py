"""Keeps compiled code between starts, so that a process may be killed at any moment.

JAX itself would try to read what such a process had half written at every start, warn,
and never write it anew.
"""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
from jax._src import compilation_cache  # where the kind of a cache is chosen
from jax._src.lru_cache import _CACHE_SUFFIX, LRUCache

_DIGEST_BYTES = hashlib.sha256().digest_size


class CheckedCache(LRUCache):
    """Entries begin with the digest of their rest; one it does not fit is not there."""

    _listening = threading.local()

    @contextlib.contextmanager
    def asked(self) -> Iterator[list[str]]:
        """The keys that this thread asks for meanwhile."""
        self._listening.keys = keys = list[str]()
        try:
            yield keys
        finally:
            del self._listening.keys

    def get(self, key: str) -> bytes | None:
        getattr(self._listening, "keys", []).append(key)
        content = super().get(key)
        if content is None:
            return None
        digest, value = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(value).digest() == digest:
            return value
        self.drop(key)
        return None

    def put(self, key: str, value: bytes) -> None:
        super().put(key, hashlib.sha256(value).digest() + value)

    def drop(self, key: str) -> None:
        """Makes room for another; where there is one, `put` leaves it as it is."""
        (self.path / f"{key}{_CACHE_SUFFIX}").unlink(missing_ok=True)


def keep_compiled_code(folder: Path) -> None:
    """Has JAX keep all compiled code of this process in a folder."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.get_file_cache = _open


def opened_cache() -> CheckedCache | None:
    """The cache that JAX keeps compiled code in, if it is one of ours."""
    client = jax.devices()[0].client
    if not compilation_cache.is_cache_used(client):
        return None
    cache = compilation_cache._get_cache(client)
    return cache if isinstance(cache, CheckedCache) else None


def _open(path: str) -> tuple[CheckedCache, str]:
    max_size = getattr(jax.config, "jax_compilation_cache_max_size", -1)
    return CheckedCache(path, max_size=max_size), path
