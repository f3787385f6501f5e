"""Mutants of a source file: each is the file with one small thing changed, in its Python or in its SQL and Lua."""

import ast
import io
import itertools
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Mutant", "mutants"]


@dataclass(frozen=True, order=True)
class Mutant:
    """`start` and `end` are offsets into the file, in characters."""

    start: int
    end: int
    new: str
    line: int
    old: str

    def applied(self, text: str) -> str:
        return text[: self.start] + self.new + text[self.end :]

    @property
    def change(self) -> str:
        return f"{_short(self.old)}  ->  {_short(self.new)}"


def mutants(text: str) -> list[Mutant]:
    """Return every mutant of `text` that is still Python, in the order of the file."""
    return [mutant for mutant in sorted({*_of_python(text), *_of_strings(text)}) if _compiles(mutant, text)]


def _short(code: str) -> str:
    return " ".join(code.split()) or "(nothing)"


def _compiles(mutant: Mutant, text: str) -> bool:
    try:
        compile(mutant.applied(text), "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


class _Source:
    """A text by the positions that `ast` and `tokenize` give."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._lines = text.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))

    def at(self, line: int, column: int) -> int:
        return self._starts[line - 1] + column

    def at_byte(self, line: int, column: int) -> int:
        return self.at(line, len(self._lines[line - 1].encode()[:column].decode()))

    def mutant(self, start: int, end: int, new: str) -> Mutant:
        return Mutant(start, end, new, self.text.count("\n", 0, start) + 1, self.text[start:end])

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.at_byte(node.lineno, node.col_offset), self.at_byte(node.end_lineno, node.end_col_offset)

    def code(self, node: ast.expr | ast.stmt) -> str:
        start, end = self.span(node)
        return self.text[start:end]


# ---- Python

_COMPARISONS: dict[type[ast.cmpop], tuple[str, tuple[str, ...]]] = {
    ast.Lt: ("<", ("<=", ">=")),
    ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<=")),
    ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
}
_SUMS: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.BitAnd: ("&", "|"),
}
_JUDGED_ALREADY = (ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Constant)


def _of_python(text: str) -> Iterator[Mutant]:
    source = _Source(text)
    for node in _behaviour(ast.parse(text)):
        match node:
            case ast.Compare():
                yield from _comparisons(source, node)
            case ast.BoolOp(values=values):
                yield from _conditions(source, node, values)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield source.mutant(*source.span(node), f"({source.code(operand)})")
            case ast.BinOp(op=op, left=left, right=right) if type(op) in _SUMS:
                yield _between(source, left, right, *_SUMS[type(op)])
            case ast.Constant(value=bool() as value):
                yield source.mutant(*source.span(node), str(not value))
            case ast.Constant(value=int() | float() as value):
                yield source.mutant(*source.span(node), repr(value + 1))
            case ast.Call(func=ast.Name(id="min" | "max" as name), args=[one, other], keywords=[]):
                yield source.mutant(*source.span(node.func), {"min": "max", "max": "min"}[name])
                yield source.mutant(*source.span(node), f"({source.code(one)})")
                yield source.mutant(*source.span(node), f"({source.code(other)})")
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
                if not isinstance(test, _JUDGED_ALREADY):
                    yield source.mutant(*source.span(test), f"not ({source.code(test)})")
            case ast.match_case(guard=ast.expr() as guard) if not isinstance(guard, _JUDGED_ALREADY):
                yield source.mutant(*source.span(guard), f"not ({source.code(guard)})")
            case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
                yield source.mutant(*source.span(value), "None")
            case ast.ExceptHandler(type=ast.expr() as caught):
                wider = "BaseException" if source.code(caught) == "Exception" else "Exception"
                yield source.mutant(*source.span(caught), wider)
            case ast.Raise() | ast.Continue() | ast.Delete() | ast.AugAssign():
                yield source.mutant(*source.span(node), "pass")
            case ast.Expr(value=value) if not isinstance(value, ast.Constant):
                yield source.mutant(*source.span(node), "pass")
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield source.mutant(*source.span(node), "pass")


def _behaviour(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but annotations, decorators and what is not executed."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child
                yield from _behaviour(child)


def _comparisons(source: _Source, node: ast.Compare) -> Iterator[Mutant]:
    left = node.left
    for op, right in zip(node.ops, node.comparators, strict=True):
        old, others = _COMPARISONS[type(op)]
        for new in others:
            yield _between(source, left, right, old, new)
        left = right


def _between(source: _Source, left: ast.expr, right: ast.expr, old: str, new: str) -> Mutant:
    start, end = source.span(left)[1], source.span(right)[0]
    begin = start + source.text[start:end].index(old)
    return source.mutant(begin, begin + len(old), new)


def _conditions(source: _Source, node: ast.BoolOp, values: list[ast.expr]) -> Iterator[Mutant]:
    old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
    for left, right in itertools.pairwise(values):
        yield _between(source, left, right, old, new)
    for left_out in values:
        rest = [f"({source.code(value)})" for value in values if value is not left_out]
        yield source.mutant(*source.span(node), f"({f' {old} '.join(rest)})")


# ---- SQL and Lua, as they stand in strings

_VALUE = r"(?:'[^']*'|[:\w.]+|\{\w+\})"
_SQL = re.compile(r"\b(SELECT|UPDATE|INSERT INTO|DELETE FROM|WHERE|AND|OR)\b|\br\.\w+")
_LUA = re.compile(r"redis\.call|KEYS\[1\]")
_IN_SQL = (
    # one condition less
    (re.compile(rf"(?:(?<=WHERE )|(?<=AND )|(?<=OR )|(?<=NOT )|(?<=\())[\w.]+ (?:=|<>|<=|>|<) {_VALUE}"), ("1 = 1",)),
    (re.compile(r"(?:(?<=WHERE )|(?<=AND )|(?<=OR )|(?<=\())(?!IN )[\w.]+ IN \([^()]*\)"), ("1 = 1",)),
    # another comparison
    (re.compile(r"(?<= )<=(?= )"), ("<", ">")),
    (re.compile(r"(?<= )>(?= )"), (">=", "<=")),
    (re.compile(r"(?<= )<>(?= )"), ("=",)),
    (re.compile(r"\bAND\b"), ("OR",)),
    (re.compile(r"\bOR\b"), ("AND",)),
    (re.compile(r"\bNOT (?=[:(\w])(?!NULL|MATERIALIZED)"), ("",)),
    (re.compile(r" \+ (?:1|:\w+)\b"), ("",)),
    # one assignment less
    (re.compile(rf", [a-z_]+ = {_VALUE}(?: \+ :\w+)*(?=,| WHERE)"), ("",)),
)  # fmt: skip
_IN_LUA = (
    (re.compile(r"(?<= )==(?= )"), ("~=",)),
    (re.compile(r"(?<= )~=(?= )"), ("==",)),
    (re.compile(r"(?<= )>(?= )"), (">=", "<=")),
    (re.compile(r"\band\b"), ("or",)),
    (re.compile(r"\bor\b"), ("and",)),
    (re.compile(r"\bnot "), ("",)),
    (re.compile(r" [+-] (?:1\b|\w+(?:\[\d+\])?)"), ("",)),
    (re.compile(r"^ *if .* then .* end$", re.M), ("",)),
    (re.compile(r"^ *redis\.call\((?:[^()]|\([^()]*\))*\)$", re.M), ("",)),
)
_EITHER = re.compile(
    r"\b(?:greatest|math\.max|math\.min)\(((?:[^(),]|\([^()]*\))+), ((?:[^(),]|\([^()]*\))+)\)"
)


def _of_strings(text: str) -> Iterator[Mutant]:
    source = _Source(text)
    prose = {
        (node.value.lineno, node.value.col_offset)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    parts = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in parts or token.start in prose:
            continue
        start = source.at(*token.start)
        written = text[start : source.at(*token.end)]
        lua, sql = _LUA.search(written), _SQL.search(written) or _EITHER.search(written)
        for pattern, others in _IN_LUA if lua else _IN_SQL if sql else ():
            for found in pattern.finditer(written):
                if lua and "--" in written[written.rfind("\n", 0, found.start()) + 1 : found.start()]:
                    continue  # a comment
                for new in others:
                    yield source.mutant(start + found.start(), start + found.end(), new)
        for found in _EITHER.finditer(written) if lua or sql else ():
            for argument in found.groups():
                yield source.mutant(start + found.start(), start + found.end(), argument)
