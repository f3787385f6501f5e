"""Results and exceptions <-> bytes, by type.

One self-describing encoding serves all: what comes back equals what went in, in value and in type, whatever
the annotation says. The annotation is used to refuse the impossible while decorating, and to find classes
that cannot be looked up by name or have moved. Nothing is imported, and classes are filled without their
`__init__`, `__post_init__` and validators.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, cast

from idempo.annotations import CannotBeStoredError, survey
from idempo.errors import ConfigurationError, ResultUnavailableError
from idempo.leaves import UnstorableError
from idempo.records import MISSING
from idempo.shapes import HEAP_TYPE, attributes_of, imported, is_data
from idempo.tagged import dump, load

__all__ = ["Codec", "UnstorableError", "codec_for", "decode_error", "encode_error"]


class Codec(Protocol):
    """How results become bytes. An object with these two methods can be given as `codec=`."""

    def encode(self, value: object) -> bytes:
        """Return the stored form of `value`. Whatever this raises means that it cannot be stored."""
        ...

    def decode(self, data: bytes) -> Any:
        """Return a new value, equal to the encoded one."""
        ...


def codec_for(annotation: object = MISSING, *, operation: str = "") -> Codec:
    """Return the codec for functions with this return annotation, as `typing.get_type_hints` has it.

    Raises ConfigurationError for an annotation whose values cannot be stored.
    """
    try:
        return _Typed(survey(annotation))
    except CannotBeStoredError as error:
        raise ConfigurationError(
            f"The return annotation cannot be stored, so repeats could not get the first result: {error}."
            " Change what the function returns, or give it a codec=.",
            operation=operation,
        ) from None


class _Typed:
    def __init__(self, classes: tuple[type, ...]) -> None:
        self._classes = classes
        self._exact = {(cls.__module__, cls.__qualname__): cls for cls in reversed(classes) if is_data(cls)}

    def encode(self, value: object) -> bytes:
        return dump(value, self._find)

    def decode(self, data: bytes) -> Any:
        return load(data, self._find)

    def _find(self, module: str, qualname: str) -> type | None:
        cls = self._exact.get((module, qualname)) or imported(module, qualname)
        if cls is not None or not self._classes:
            return cls
        below = [cls for cls in _with_subclasses(self._classes) if is_data(cls)]
        return _named(module, qualname, below)


def _named(module: str, qualname: str, classes: Iterable[type]) -> type | None:
    """Return the one class of this name; where none has the module, the one that has moved to another."""
    same = [cls for cls in classes if cls.__qualname__ == qualname]
    here = [cls for cls in same if cls.__module__ == module]
    found = here or same
    return found[0] if len(found) == 1 else None


def _with_subclasses(classes: Iterable[type]) -> Iterator[type]:
    seen: set[type] = set()
    todo = list(classes)
    while todo:
        cls = todo.pop()
        if cls not in seen:
            seen.add(cls)
            yield cls
            todo.extend(type.__subclasses__(cls))


def encode_error(error: BaseException) -> bytes:
    """Return the stored form of an exception that is a result: class name, args, attributes and notes.

    Attributes that are private or cannot be stored are left out. Neither traceback nor cause is kept. Raises
    UnstorableError if an argument cannot be stored.
    """
    cls = type(error)
    try:
        # The builtin's own __reduce__ runs no code of the class, and knows the arguments that OSError hides.
        args = cast(Any, _builtin(cls)).__reduce__(error)[1]
        attributes = attributes_of(error)
    except Exception as problem:
        raise UnstorableError(f"reading the exception raised {type(problem).__name__}") from problem
    public = {name: v for name, v in attributes.items() if not name.startswith("_") and _storable(v)}
    notes = [note for note in getattr(error, "__notes__", ()) if type(note) is str]
    return dump([cls.__module__, cls.__qualname__, args, public, notes], imported)


def _storable(value: object) -> bool:
    try:
        dump(value, imported)
    except UnstorableError:
        return False
    return True


def decode_error(data: bytes, allowed: tuple[type[BaseException], ...]) -> BaseException:
    """Return a new exception like the stored one. Its class must be one of `allowed`, or a subclass of one.

    `__init__` is not called. A class that has moved to another module is found by its qualified name.
    """
    stored = load(data, imported)
    try:
        module, qualname, args, state, notes = stored
        cls = _named(module, qualname, allowed) or _named(module, qualname, _with_subclasses(allowed))
        if cls is None:
            raise ResultUnavailableError(
                f"The first call ended with {module}.{qualname}, which is not among the exceptions of"
                " replay_errors= in this process, nor a subclass of one: import it, or name it there."
            )
        return _rebuild(cast("type[BaseException]", cls), tuple(args), state, notes)
    except ResultUnavailableError:
        raise
    except Exception as error:
        raise ResultUnavailableError(
            f"The stored exception cannot be read: it is damaged, or not idempo's ({type(error).__name__})."
        ) from error


def _rebuild(
    cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any], notes: list[str]
) -> BaseException:
    builtin = cast(Any, _builtin(cls))
    error = cast(BaseException, builtin.__new__(cls, *args))
    try:
        builtin.__init__(
            error, *args
        )  # UnicodeError and others keep parts of their args in places of their own
    except TypeError:  # the class keeps other args than it hands to its base
        error.args = args
    for name, value in state.items():
        object.__setattr__(error, name, value)
    for note in notes:
        error.add_note(note)
    return error


def _builtin(cls: type[BaseException]) -> type:
    """Return the nearest base that is written in C."""
    return next(base for base in cls.__mro__ if not base.__flags__ & HEAP_TYPE)
