"""Classes of plain data come back as the class they were, without running any code of theirs."""

import dataclasses
import functools
import sys
import threading
import types
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Generic, NamedTuple, Optional, TypeVar

import attrs
import msgspec
import pytest

from idempo.codec import UnstorableError, codec_for
from idempo.errors import ResultUnavailableError
from tests.test_codec import again, same

pydantic = pytest.importorskip("pydantic")
T = TypeVar("T")
RAN: list[str] = []


@dataclasses.dataclass
class Base:
    id: int

    def __post_init__(self) -> None:
        RAN.append("dataclass")


@dataclasses.dataclass
class Child(Base):
    extra: str = "x"


class Undecorated(Base):
    def __init__(self) -> None:
        super().__init__(1)
        self.more = (2,)


@dataclasses.dataclass
class Twin:
    id: int


@dataclasses.dataclass(slots=True)
class Unset:
    made: int = dataclasses.field(init=False)
    kept: list[int] = dataclasses.field(init=False, default_factory=list)


@dataclasses.dataclass
class Tree:
    left: Optional["Tree"] = None
    right: "Tree | None" = None


@dataclasses.dataclass
class Box(Generic[T]):
    item: T


@dataclasses.dataclass
class Lazy:
    id: int

    @functools.cached_property
    def lock(self) -> object:
        return threading.Lock()


@attrs.define
class Slotted:
    id: int
    tags: set[str] = attrs.Factory(set)

    def __attrs_post_init__(self) -> None:
        RAN.append("attrs")


@attrs.frozen(cache_hash=True)
class Frozen:
    id: str


@attrs.define(slots=False)
class Open:
    id: int = attrs.field(converter=int)


class Struct(msgspec.Struct, frozen=True):
    id: int
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        RAN.append("struct")


class Tagged(msgspec.Struct, tag="t", kw_only=True, cache_hash=True, frozen=True, dict=True, weakref=True):
    id: Decimal
    rest: tuple[Any, ...] = ()


class Named(NamedTuple):
    id: int


class NamedChild(Named):
    pass


class Model(pydantic.BaseModel):  # type: ignore[name-defined,misc]
    id: Decimal
    at: tuple[int, ...] = ()
    children: list["Model"] = pydantic.Field(default=[])
    _secret: int = pydantic.PrivateAttr(default=1)

    @pydantic.model_validator(mode="after")  # type: ignore[untyped-decorator]
    def check(self) -> "Model":
        RAN.append("pydantic")
        return self


class Extra(pydantic.BaseModel):  # type: ignore[name-defined,misc]
    model_config = pydantic.ConfigDict(extra="allow", frozen=True)
    id: int


class Root(pydantic.RootModel[list[int]]):  # type: ignore[name-defined,misc]
    pass


@pydantic.dataclasses.dataclass
class Checked:
    id: int


def examples() -> Iterator[object]:
    yield from [
        Base(1),
        Child(1),
        Undecorated(),
        Twin(1),
        Tree(Tree(), Tree(Tree())),
        Box[int](1),
        Box(Box(None)),
    ]
    lazy = Lazy(1)
    assert lazy.lock
    grown, private = Base(1), Model(id=Decimal("1.00"))
    grown.note = {"a": (1,)}  # type: ignore[attr-defined]
    private._secret = 7
    yield from [lazy, grown, private, Slotted(1, {"a"}), Frozen("a"), Open("7")]
    tagged = Tagged(id=Decimal(1))
    vars(tagged)["note"] = 1
    yield from [Struct(1), tagged, Named(1), NamedChild(2)]
    yield Model(id=Decimal("2.0"), at=(1,), children=[Model(id=1)])
    yield from [Extra(id=1, more=(1, 2)), Root([1]), Checked(id=1)]  # type: ignore[call-arg]


EXAMPLES = list(examples())


@pytest.mark.parametrize("value", EXAMPLES, ids=lambda value: type(value).__name__)
def test_instances_come_back_with_and_without_their_class_in_the_annotation(value: Any) -> None:
    hash_of = hash(value) if isinstance(value, Frozen | Tagged) else None
    RAN.clear()
    for annotation in (Any, type(value), Twin, Base | Twin, list[Base]):
        back = again([value, value], annotation)[1]
        assert type(back) is type(value)
        assert same(back, value)
        assert back == value
        assert back is not value
        assert hash_of is None or hash(back) == hash_of
    assert not RAN


def test_private_attributes_and_set_fields_of_a_model_are_kept() -> None:
    value = Model(id=1)
    value._secret = 5
    back = again(value)
    assert back._secret == 5
    assert back.model_fields_set == {"id"}
    assert again(Extra(id=1, more=2)).more == 2


def test_a_cached_property_is_computed_anew() -> None:
    value = Lazy(1)
    assert value.lock is not again(value).lock


def test_an_attribute_that_was_never_set_stays_unset() -> None:
    back = again(Unset())
    assert not hasattr(back, "made")
    assert back.kept == []


def test_a_frozen_struct_stays_frozen() -> None:
    back = again(Struct(1))
    with pytest.raises(AttributeError):
        back.id = 2


def local() -> tuple[type, type]:
    @dataclasses.dataclass
    class Leaf:
        next: "Leaf | None" = None

    @dataclasses.dataclass
    class Sub(Leaf):
        pass

    return Leaf, Sub


def test_a_class_inside_a_function_is_found_by_the_annotation_only() -> None:
    leaf, sub = local()
    for value in (leaf(leaf()), sub(leaf())):
        assert type(again(value, leaf)) is type(value)
        assert same(again([value], list[leaf]), [value])  # type: ignore[valid-type]
        with pytest.raises(UnstorableError, match="annotation"):
            codec_for().encode(value)


def test_a_subclass_made_twice_under_one_name_is_refused_rather_than_confused() -> None:
    @dataclasses.dataclass
    class Root:
        pass

    def make() -> Any:
        @dataclasses.dataclass
        class Sub(Root):
            pass

        return Sub()

    one, other = make(), make()
    for value in (one, other):
        with pytest.raises(UnstorableError):
            codec_for(Root).encode(value)


def test_an_instance_of_a_class_that_was_replaced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = module("shop", monkeypatch, RECEIPT).Receipt(1)
    module("shop", monkeypatch, RECEIPT)
    with pytest.raises(UnstorableError, match=r"shop\.Receipt"):
        codec_for().encode(old)


def module(name: str, monkeypatch: pytest.MonkeyPatch, source: str) -> Any:
    made = types.ModuleType(name)
    exec("import dataclasses, enum\n" + source, made.__dict__)
    monkeypatch.setitem(sys.modules, name, made)
    return made


RECEIPT = "@dataclasses.dataclass\nclass Receipt:\n    no: int\n"


def test_a_class_that_has_moved_is_found_by_the_annotation(monkeypatch: pytest.MonkeyPatch) -> None:
    old = module("shop_old", monkeypatch, RECEIPT)
    stored = codec_for(old.Receipt).encode([old.Receipt(1)])
    monkeypatch.delitem(sys.modules, "shop_old")
    new = module("shop_new", monkeypatch, RECEIPT)
    assert codec_for(new.Receipt | None).decode(stored) == [new.Receipt(1)]
    with pytest.raises(ResultUnavailableError, match=r"shop_old\.Receipt"):
        codec_for().decode(stored)


def test_a_class_that_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = codec_for().encode(module("shop", monkeypatch, RECEIPT + "    gone: int = 0\n").Receipt(1))
    shop = module(
        "shop",
        monkeypatch,
        RECEIPT + "    tax: int = 7\n    tags: list = dataclasses.field(default_factory=list)\n",
    )
    assert codec_for().decode(stored) == shop.Receipt(1, 7, [])
    assert not hasattr(codec_for().decode(stored), "gone")
    module("shop", monkeypatch, RECEIPT + "    tax: int\n")
    with pytest.raises(ResultUnavailableError, match="'tax'"):
        codec_for().decode(stored)


def test_a_member_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = codec_for().encode(
        module("shop", monkeypatch, "class State(enum.Enum):\n    PAID = 1\n").State.PAID
    )
    module("shop", monkeypatch, "class State(enum.Enum):\n    OPEN = 1\n")
    with pytest.raises(ResultUnavailableError, match="State"):
        codec_for().decode(stored)


def test_nothing_is_imported_or_called_for_a_name_in_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = module("shop", monkeypatch, RECEIPT)
    stored = codec_for().encode(shop.Receipt(1))
    for name in ("os", "idle", "sys", "nul"):  # of the same length or shorter: the message stays readable
        with pytest.raises(ResultUnavailableError):
            codec_for().decode(stored.replace(b"\xa4shop", bytes([0xA0 + len(name)]) + name.encode()))
    shop.Receipt = lambda no: RAN.append("called")
    RAN.clear()
    with pytest.raises(ResultUnavailableError):
        codec_for().decode(stored)
    assert not RAN


@dataclasses.dataclass
class Holder:
    call: Callable[[], int] | None = None


class Owner:
    def __del__(self) -> None: ...


@dataclasses.dataclass
class Handle(Owner):
    id: int


@dataclasses.dataclass
class Fault(Exception):
    code: int


@pytest.mark.parametrize(
    "value", [Holder(lambda: 1), Handle(1), Fault(1), Box(Plain := type("Plain", (), {})())]
)
def test_what_is_not_only_data_is_refused(value: object) -> None:
    with pytest.raises(UnstorableError):
        codec_for().encode(value)
