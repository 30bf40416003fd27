"""The single edits that a tutor would try on a student's function; `lines` finds those that repair it."""

import ast
import re
from collections.abc import Iterator
from itertools import accumulate, combinations, pairwise
from typing import Any, NamedTuple

# What is easily taken for one another.
SIGNS = (
    "+ - * / @ ** // % & |", "+= -= *= /= @= //= =", "< <= > >= == !=", "and or", "is is+not", "in not+in",
)  # fmt: skip
NAMES = (
    "sum mean prod std var amax logsumexp", "max min", "amax amin", "maximum minimum", "any all",
    "argmax argmin", "tril triu", "exp log", "sin cos", "sqrt square", "floor ceil round", "log log2",
    "softmax log_softmax sigmoid", "relu tanh gelu", "zeros ones eye", "zeros_like ones_like",
    "cumsum cumprod", "view reshape", "train eval", "append extend", "True False",
)  # fmt: skip
ALONG = (  # what goes along an axis
    " mean sum var std max min amax amin argmax argmin softmax log_softmax cumsum any all sort chunk split "
    "cat stack transpose permute unsqueeze squeeze flatten gather size topk norm prod logsumexp shape "
)
DIMS = [f"dim={i}" for i in (-1, 0, 1, -2)]
SETTINGS = [
    "keepdim=True",
    *(f"{d}, keepdim=True" for d in DIMS),
    *DIMS,
    "correction=0",
    "descending=True",
]
AROUND = {  # what may be missing around an expression _, and what kind of mistake that is
    "-_": "sign", "~_": "negation", "not _": "condition", "_**0.5": "root", "_**2": "square", "1/_": "fraction",
    "1-_": "term", "2*_": "factor", "_/2": "factor", "_+1": "bound", "_-1": "bound", "_.exp()": "exponential",
    "_.log()": "logarithm", "_.mT": "transpose", "_.clone()": "copy", "_.floor()": "rounding", "_.double()": "type",
}  # fmt: skip
KINDS = {
    ast.BinOp: "operator", ast.UnaryOp: "sign", ast.Compare: "comparison", ast.BoolOp: "condition", ast.IfExp: "condition",
    ast.Call: "call of {}", ast.Name: "name {}", ast.Attribute: "name {}", ast.Subscript: "index", ast.Slice: "bound",
}  # fmt: skip


class Edit(NamedTuple):
    """A change of a function's source."""

    rank: float  # the smaller, the likelier
    kind: str  # completes "Look at the ..."
    line: int
    source: str  # after the change


def number(node: Any) -> float | None:
    """The value of a number, which may be negative; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        n = number(node.operand)
        return None if n is None else -n
    value = node.value if isinstance(node, ast.Constant) else None
    return value if type(value) in (int, float) else None


def name_of(node: Any) -> str:
    """The name of a variable, of an attribute, or of what is called."""
    node = getattr(node, "func", node)
    return getattr(node, "attr", getattr(node, "id", ""))


def kind_of(node: Any, above: Any) -> str:
    """What a node is to a student."""
    if number(node) is None:
        return KINDS.get(type(node), "value").format(name_of(node))
    if isinstance(above, ast.keyword):
        return "axis" if above.arg in ("dim", "axis") else f"argument {above.arg}"
    along = isinstance(above, ast.Call) and f" {name_of(above)} " in ALONG
    return "axis" if along else "bound" if isinstance(above, ast.Slice) else "number"


class Source:
    """A function's source, its tree, and the text of every node."""

    def __init__(self, source: str) -> None:
        self.bytes, self.tree = source.encode(), ast.parse(source)
        self.starts = [0, *accumulate(map(len, self.bytes.splitlines(keepends=True)))]

    def start(self, node: Any) -> int:
        """Where a node starts."""
        return self.starts[node.lineno - 1] + node.col_offset

    def end(self, node: Any) -> int:
        """Where a node ends."""
        return self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: Any) -> str:
        """The text of a node."""
        return self.bytes[self.start(node) : self.end(node)].decode()

    def put(self, rank: float, kind: str, at: Any, new: str, start: int, end: int) -> Edit:
        """The edit that puts a new text in the place of an old one."""
        return Edit(
            rank, kind, at.lineno, (self.bytes[:start] + new.encode() + self.bytes[end:]).decode()
        )

    def edits(self, names: list[str], more: bool) -> Iterator[Edit]:
        """The edits that put one thing in place of another, or those that add something."""
        left_out = ast.FunctionDef | ast.arguments | ast.arg | ast.JoinedStr | ast.FormattedValue
        for above in ast.walk(self.tree):
            for node in ast.iter_child_nodes(above):
                read = (
                    isinstance(getattr(node, "ctx", ast.Load()), ast.Load) and number(above) is None
                )
                if isinstance(node, ast.expr) and read and not isinstance(above, left_out):
                    news = (
                        self.more(node, above, names) if more else self.instead(node, above, names)
                    )
                    for rank, kind, new in news:
                        new = new if isinstance(node, ast.Slice) else f"({new})"
                        yield self.put(rank, kind, node, new, self.start(node), self.end(node))
            if not more:
                yield from self.rearranged(above)
                for block in (getattr(above, "body", None), getattr(above, "orelse", None)):
                    yield from self.statements(block) if isinstance(block, list) else ()

    def instead(self, node: Any, above: Any, names: list[str]) -> Iterator[tuple[float, str, str]]:
        """What could stand in an expression's place, made of the same parts."""
        kind, t, new = kind_of(node, above), self.text, []
        match node:
            case _ if (n := number(node)) is not None:
                near = {n + 1, n - 1, -n, 0, 1, 2, 0.5, 2 * n, n / 2, 1 - n, n * n, 10 * n, n / 10}
                near |= {1 / n, abs(n) ** 0.5} if n else set()
                near |= {int(x) for x in near if abs(x) < 1e9 and x == int(x)}
                new = [*map(repr, range(-3, 4) if kind == "axis" else near), "-float('inf')"]
            case ast.BinOp(ast.BinOp(a, inner, b), outer, c):
                new = [ast.unparse(ast.BinOp(a, inner, ast.BinOp(b, outer, c)))]
            case ast.BinOp(a, outer, ast.BinOp(b, inner, c)):
                new = [ast.unparse(ast.BinOp(ast.BinOp(a, outer, b), inner, c))]
            case ast.Name(name):
                new = [*names, *alike(name, NAMES)]
            case ast.Attribute(value, name):
                new = [f"({t(value)}).{other}" for other in alike(name, NAMES)]
            case ast.Call(ast.Attribute(value)):
                new = [t(value)]
            case ast.Constant():
                new = alike(t(node), NAMES)
            case ast.Slice(lower, upper):
                a, b = (t(bound) if bound else "" for bound in (lower, upper))
                new = [f"{b}:{a}", f":{a}", f"{b}:", f"{a}:", f":{b}"]
        yield from ((0, kind, text) for text in new)
        parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
        yield from ((0, kind, t(part)) for part in parts if n is None)

    def more(self, node: Any, above: Any, names: list[str]) -> Iterator[tuple[float, str, str]]:
        """What may be missing around an expression, or in a call."""
        old, kind = self.text(node), kind_of(node, above)
        if isinstance(node, ast.Slice) or kind == "axis":
            return
        yield from ((1, what, text.replace("_", f"({old})")) for text, what in AROUND.items())
        if isinstance(node, ast.Call):
            start = old[:-1].rstrip(", \n") + (", " if node.args or node.keywords else "")
            settings = SETTINGS if f" {name_of(node)} " in ALONG else []
            yield from ((1, "axis", f"{start}{setting})") for setting in settings)
            yield from ((1, kind, f"{start}{name})") for name in names)
        for i, name in enumerate(names):
            for op in "+-*/@":
                kind, rank = "term" if op in "+-" else "factor", 2 + i / len(names)
                yield rank, kind, f"({old}) {op} {name}"
                yield rank, kind, f"{name} {op} ({old})"

    def rearranged(self, node: Any) -> Iterator[Edit]:
        """Two parts in each other's place, another sign between two, one part too many."""
        parts = [
            part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr | ast.keyword)
        ]
        parts.sort(key=self.start)
        for a, b in combinations(parts, 2):
            gap = self.bytes[self.end(a) : self.start(b)].decode()
            new = self.text(b) + gap + self.text(a)
            yield self.put(0, "order", a, new, self.start(a), self.end(b))
        for a, b in pairwise(parts):
            gap = self.bytes[self.end(a) : self.start(b)].decode()
            sign = re.sub(r"[\s()]+", " ", gap).strip().replace(" ", "+")
            kind = (
                "sign"
                if sign in ("+", "-")
                else "factor"
                if sign in ("*", "/", "@")
                else "operator"
            )
            kind = (
                "assignment"
                if isinstance(node, ast.stmt)
                else "comparison"
                if isinstance(node, ast.Compare)
                else kind
            )
            for other in alike(sign, SIGNS):
                new = gap.replace(
                    sign.replace("+", " ") if len(sign) > 2 else sign,
                    f" {other.replace('+', ' ') if len(other) > 2 else other} ",
                )
                yield self.put(0, kind, a, new, self.end(a), self.start(b))
            if isinstance(node, ast.Call | ast.BoolOp):
                yield self.put(
                    0, kind_of(node, None), b, "", self.end(a) + ("(" in gap), self.end(b)
                )
                yield self.put(0, kind_of(node, None), a, "", self.start(a), self.start(b))

    def statements(self, block: list[Any]) -> Iterator[Edit]:
        """Other orders, indentations and forms of some statements; one may be too many."""
        for s in block:
            t, new = self.text(s), [("line itself", "pass")]
            match s:
                case ast.AugAssign(ast.Name(x), op, value):
                    new += [
                        (
                            "change in place",
                            f"{x} = " + ast.unparse(ast.BinOp(ast.Name(x), op, value)),
                        )
                    ]
                case ast.Assign([ast.Subscript(ast.Name(x))]):
                    new += [("change in place", f"{x} = {x}.clone(); {t}")]
                case ast.Expr(ast.Call(ast.Attribute(ast.Name(x), method))):
                    new += [
                        ("change in place", f"{x} = {t.replace(method, method.rstrip('_'), 1)}")
                    ]
                case ast.If(test):
                    for other in "True", "False", f"not ({self.text(test)})":
                        yield self.put(0, "condition", s, other, self.start(test), self.end(test))
            for kind, text in new:
                yield self.put(0, kind, s, text, self.start(s), self.end(s))
            if body := getattr(s, "body", None):
                last, out = body[-1], "\n" + " " * s.col_offset + self.text(body[-1])
                text = self.bytes[self.end(last) : self.end(s)].decode() + out
                yield self.put(0, "indentation", last, f"pass{text}", self.start(last), self.end(s))
        for s, after in pairwise(block):
            gap = self.bytes[self.end(s) : self.start(after)].decode()
            text = self.text(after) + gap + self.text(s)
            yield self.put(0, "order of the lines", s, text, self.start(s), self.end(after))
            if body := getattr(s, "body", None):
                text = "\n" + " " * body[0].col_offset + self.text(after)
                yield self.put(0, "indentation", after, text, self.end(s), self.end(after))


def alike(word: str, groups: tuple[str, ...]) -> list[str]:
    """What is easily taken for this."""
    return [
        other
        for group in map(str.split, groups)
        if word in group
        for other in group
        if other != word
    ]
