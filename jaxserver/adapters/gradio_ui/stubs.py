"""Imports Gradio without the stubs that it writes for editors.

Whenever Gradio is imported it parses the source of each of its components and writes
what editors are to know of them beside it, which takes more than half of the time.
"""

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_WRITER = "gradio.component_meta"


class _Loader(importlib.machinery.SourceFileLoader):
    """Leaves the stubs of Gradio's own components as they are."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        write = getattr(module, "create_or_modify_pyi", None)
        if write is None:
            return

        def write_of_others(component: type, *rest: object) -> None:
            if component.__module__.partition(".")[0] != "gradio":
                write(component, *rest)

        vars(module).update(create_or_modify_pyi=write_of_others)


class _Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(
        cls,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _WRITER:
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


def leave_stubs() -> None:
    """For this process, where Gradio is not imported yet."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
