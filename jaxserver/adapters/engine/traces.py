"""Remembers what steps were traced to, so that the next start only reads their code.

JAX traces and lowers a step to find out which entry of its cache is the step's code.
That takes longer than reading the entry, and runs on one core.
"""

import hashlib
import io
import logging
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
from jax._src import cache_key, compilation_cache
from jax._src.interpreters.mlir import sanitize_name
from jax._src.lib import version_str
from jax.experimental.serialize_executable import _JaxPjrtPickler, _JaxPjrtUnpickler
from jax.stages import Compiled
from jaxlib.xla_client import LoadedExecutable

from jaxserver.adapters.engine.compile_cache import CheckedCache, opened_cache
from jaxserver.adapters.engine.processor import multiplies_bytes

Record: TypeAlias = tuple[Any, list[Any], Any, Any, bool]
"""An executable without its code, its arguments, their tree and the results', and
whether it takes no keywords."""

LOGGER = logging.getLogger("jaxserver")
Result = TypeVar("Result")
_PACKAGE = Path(__file__).parents[2]
_CODE = "exec"
"""How JAX's own pickler marks an executable's code."""


class Traces:
    """Which code the steps of one configuration have.

    A record is found by everything that tracing depends on; one of anything else has
    another name. It lies in the cache, beside the code that it names.
    """

    def __init__(self, made_of: str, devices: Sequence[jax.Device]) -> None:
        """Finds the records of one configuration.

        Args:
            made_of: Says everything that the steps are made of, but for what `origin`
                says.
            devices: Those that the steps run on, in their order.
        """
        self._devices = list(devices)
        self._name = hashlib.sha256(origin(devices) + made_of.encode()).hexdigest()

    def get(self, kind: str, size: int, build: Callable[[], Compiled]) -> Compiled:
        """The executable of a kind and a size; is built where it has to be traced.

        A cache that cannot be read or written is none, as it is for JAX.
        """
        key = f"trace_{kind}_{size}-{self._name}"
        cache = _if_it_can(opened_cache)
        if cache is None:
            return build()
        known = _if_it_can(lambda: self._read(cache, key))
        if known is not None:
            return known
        with cache.asked() as codes:
            built = build()
        _if_it_can(lambda: _remember(cache, key, built, codes))
        return built

    def _read(self, cache: CheckedCache, key: str) -> Compiled | None:
        record = cache.get(key)
        if record is None:
            return None
        try:
            return self._loaded(record)
        except Exception:
            cache.drop(key)
            raise

    def _loaded(self, record: bytes) -> Compiled:
        parts: Record = _Unpickler(io.BytesIO(record), self._devices).load()
        executable, infos, in_tree, out_tree, no_kwargs = parts
        args = in_tree.unflatten(infos)
        return Compiled(executable.load(), [], args, out_tree, no_kwargs=no_kwargs)


def _if_it_can(action: Callable[[], Result]) -> Result | None:
    try:
        return action()
    except Exception as error:  # whatever JAX's inside or the disk has against it
        LOGGER.debug("a step is traced: %s", error)
        return None


def _remember(
    cache: CheckedCache, key: str, built: Compiled, codes: Sequence[str]
) -> None:
    if codes and _is_code_of(built, codes[-1]):
        cache.put(key, _record(built, codes[-1]))


def origin(devices: Sequence[jax.Device]) -> bytes:
    """A digest of what every step is made of: code, versions, settings and devices."""
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(_PACKAGE)} ".encode() + file.read_bytes())
    versions = (jax.__version__, version_str, np.__version__, sys.version)
    # What a thread sets for itself alone does not reach those that compile.
    settings = sorted(jax.config.values.items())
    places = [device.id for device in devices]
    digest.update(repr((versions, settings, places, multiplies_bytes())).encode())
    # As JAX's own keys have it.
    cache_key._hash_platform(digest, devices[0].client)
    cache_key._hash_xla_flags(digest, cache_key.get_flag_prefixes())
    cache_key._hash_accelerator_config(digest, np.array(devices))
    return digest.digest()


def _is_code_of(compiled: Compiled, key: str) -> bool:
    """Not that of something small which tracing ran, where JAX knew the step itself."""
    executable: Any = compiled._executable
    name = sanitize_name(executable._unloaded_executable.name).rstrip("_")
    return not compiled._params.const_args and key.rpartition("-")[0] == name


def _record(compiled: Compiled, code: str) -> bytes:
    infos, in_tree = jax.tree.flatten(compiled.args_info)
    executable: Any = compiled._executable
    parts = (executable._unloaded_executable, infos, in_tree, compiled.out_tree)
    file = io.BytesIO()
    _Pickler(file, code).dump((*parts, compiled._no_kwargs))
    return file.getvalue()


class _Pickler(_JaxPjrtPickler):
    """Writes the name of an executable's code in its place."""

    def __init__(self, file: io.BytesIO, code: str) -> None:
        super().__init__(file)
        self._code = code

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, LoadedExecutable):
            return (_CODE, self._code)
        known: Any = super().persistent_id
        return known(obj)


class _Unpickler(_JaxPjrtUnpickler):
    """Reads the code from the cache."""

    def __init__(self, file: io.BytesIO, devices: list[jax.Device]) -> None:
        start: Any = super().__init__
        start(file, devices[0].client, devices)

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] != _CODE:
            load: Any = super().persistent_load
            return load(pid)
        executable, _ = compilation_cache.get_executable_and_time(
            pid[1], None, self.backend, self.execution_devices
        )
        if executable is None:
            raise pickle.UnpicklingError(f"{pid[1]} is not in the cache any more")
        return executable
