"""Which methods of a server its user has written."""

import dataclasses

from jaxserver.ports.handlers import Handlers


def is_overridden(server: object, base: type, name: str) -> bool:
    """Whether a subclass, or the object itself, has its own method of that name."""
    is_on_object = name in vars(server)
    return is_on_object or getattr(type(server), name) is not getattr(base, name)


def own_handlers(server: object, base: type) -> Handlers:
    """The handlers that are the user's own; adapters do without the others.

    Whoever overrides `process` wants it used everywhere, so all of them are given then.
    """
    names = [field.name for field in dataclasses.fields(Handlers)]
    all_of_them = is_overridden(server, base, "process")
    own = [n for n in names if all_of_them or is_overridden(server, base, n)]
    return Handlers(**{name: getattr(server, name) for name in own})
