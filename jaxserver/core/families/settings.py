"""Reads the numbers of a model's configuration, each of which has its bounds."""

import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxserver.ports.errors import UnsupportedModel

MAX_SIZE = 2**31 - 1


class Settings(NamedTuple):
    """What one file says, by key.

    Every method may raise `UnsupportedModel`, which names key, value and what is read.

    Attributes:
        values: The file's own.
        file: What errors call it.
        prefix: Stands before every key.
    """

    values: Mapping[str, Any]
    file: str
    prefix: str = ""

    def get(self, key: str, default: Any = None) -> Any:
        """The value; null is the same as nothing."""
        value = self.values.get(f"{self.prefix}{key}")
        return default if value is None else value

    def size(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        value = self.get(key, default)
        if type(value) is not int or not least <= value <= MAX_SIZE:
            raise self.refused(key, f"a whole number from {least} to {MAX_SIZE} there")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value <= MAX_SIZE:
            raise self.refused(key, f"a number above 0, at most {MAX_SIZE}, there")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.get(key, False)
        if not isinstance(value, bool):
            raise self.refused(key, "true or false there")
        return value

    def inner(self, key: str) -> "Settings":
        """The settings that stand together under a key; none where there is none."""
        values = self.get(key, {})
        if not isinstance(values, dict):
            raise self.refused(key, "an object there")
        return Settings(values, self.file)

    def refused(self, key: str, supported: str) -> UnsupportedModel:
        value = reprlib.repr(self.get(key))
        return UnsupportedModel(
            f"{self.file} with {self.prefix}{key} {value}", supported
        )
