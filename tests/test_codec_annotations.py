"""Annotations that promise what cannot be stored are refused while decorating; all others are not."""

import abc
import contextlib
import dataclasses
import threading
import types
import typing
from collections import defaultdict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from decimal import Decimal
from pathlib import Path
from typing import (
    IO,
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    NewType,
    Protocol,
    TextIO,
    TypedDict,
    TypeVar,
)

import pytest

from idempo.codec import codec_for
from idempo.errors import ConfigurationError
from tests.test_codec import Colour, Line, MyStr, Order, again, same

OrderId = NewType("OrderId", int)
T = TypeVar("T")
B = TypeVar("B", bound=Order)


class Response:
    def __init__(self) -> None:
        self.socket = object()


class Event(abc.ABC):
    @abc.abstractmethod
    def name(self) -> str: ...


@dataclasses.dataclass
class Happened(Event):
    def name(self) -> str:
        return "happened"


class Priced(Protocol):
    price: Decimal


class Movie(TypedDict, total=False):
    name: typing.Required[str]
    cast: list[Line]


@dataclasses.dataclass
class Node:
    handler: Callable[[], int] | None
    children: "list[Node]"
    count: ClassVar[Callable[[], int]]


@dataclasses.dataclass
class Locked:
    work: Iterator[int]


@dataclasses.dataclass
class Either:
    work: Iterator[int] | Callable[[], int]


class Row(NamedTuple):
    work: "Awaitable[int]"


REFUSED: list[Any] = [
    *[
        Callable,
        Callable[[], int],
        Iterator[int],
        Generator[int, None, None],
        AsyncIterator[int],
        Awaitable[int],
    ],
    *[
        typing.Callable,
        typing.Iterator,
        contextlib.AbstractContextManager[int],
        TextIO,
        IO[bytes],
        type,
        type[int],
    ],
    *[
        Response,
        list[Response],
        Order | Response,
        Response | None,
        dict[str, Iterator[int]],
        tuple[int, Response],
    ],
    *[
        threading.Lock,
        threading.Thread,
        types.ModuleType,
        types.FunctionType,
        ValueError,
        MyStr,
        memoryview,
    ],
    *[defaultdict[str, int], Annotated[Response, 1], NewType("R", Response), TypeVar("R", bound=Response)],
    *[Locked, list[Locked | None], Either, Row],
]
ACCEPTED: list[Any] = [
    *[
        None,
        type(None),
        Any,
        object,
        int,
        int | None,
        list,
        dict,
        list[int],
        dict[int, Order],
        tuple[int, ...],
        set[str],
    ],
    *[
        Sequence[Order],
        Mapping[str, Any],
        Iterable[int],
        Path,
        OrderId,
        Annotated[Order, 1],
        Literal["a", 1],
        T,
        B,
        list[T],  # type: ignore[valid-type] # pyright: ignore[reportGeneralTypeIssues]
    ],
    *[
        Literal[Colour.RED],
        Colour,
        Order,
        Line,
        Movie,
        Node,
        Event,
        Happened,
        Priced,
        typing.NoReturn,
        typing.Hashable,
    ],
    *[bytes, Decimal, complex, range, "Order", typing.Optional["Order"], typing.List[Order], tuple[()]],  # noqa: UP006
]


@pytest.mark.parametrize("annotation", REFUSED, ids=str)
def test_refused(annotation: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be stored") as caught:
        codec_for(annotation, operation="shop.pay")
    assert caught.value.operation == "shop.pay"


@pytest.mark.parametrize("annotation", ACCEPTED, ids=str)
def test_accepted(annotation: Any) -> None:
    assert same(again([Order(1), Happened()], annotation), [Order(1), Happened()])


def test_a_mapped_row_is_refused() -> None:
    orm = pytest.importorskip("sqlalchemy.orm")

    class Registry(orm.DeclarativeBase, orm.MappedAsDataclass):  # type: ignore[name-defined,misc]
        pass

    class Mapped(Registry):
        __tablename__ = "t"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)  # type: ignore[name-defined]

    with pytest.raises(ConfigurationError, match="belongs to its session"):
        codec_for(Mapped)


def test_classes_inside_functions_are_found_through_their_fields() -> None:
    @dataclasses.dataclass
    class Leaf:
        name: str

    @dataclasses.dataclass
    class Branch:
        up: "Branch | None"
        leaf: Leaf

    value = Branch(Branch(None, Leaf("a")), Leaf("b"))
    assert same(again(value, Branch), value)


def test_the_refusal_says_where_and_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r"field 'work' of Locked.*return a list.*codec="):
        codec_for(list[Locked])


def test_pydantic_types_that_stand_for_others_are_accepted() -> None:
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Signup", at=(pydantic.AwareDatetime, ...), n=(pydantic.PositiveInt, ...))
    value = model(at="2024-01-01T00:00:00Z", n=1)
    assert again(value, model) == value


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("HttpUrl", "declare it as str"),
        ("PostgresDsn", "declare it as str"),
        ("SecretStr", "leave it out"),
        ("SecretBytes", "leave it out"),
    ],
)
def test_pydantic_types_without_a_stored_form_are_refused_while_decorating(name: str, advice: str) -> None:
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Signup", of=(getattr(pydantic, name), ...))
    with pytest.raises(ConfigurationError, match=rf"field 'of' of Signup.*{advice}"):
        codec_for(model)


def test_a_generic_model_comes_back_as_itself() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Page(pydantic.BaseModel, typing.Generic[T]):  # type: ignore[name-defined,misc]
        items: list[T]

    value = Page[Line](items=[Line("a", 1)])
    assert type(again(value, Page[Line])) is Page[Line]
    assert type(again(value, Page)) is Page[Line]
