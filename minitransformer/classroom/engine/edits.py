"""The single edits that a tutor would try on a student's function; `lines` finds those that repair it."""

import ast
from collections.abc import Iterator
from itertools import accumulate, combinations, pairwise
from typing import Any

Edit = tuple[
    float, str, int, str
]  # a rank (small: likely), what to look at, the line, the new source
Change = tuple[str, Any, Any, str]  # what to look at, and the new text from one node to another

# What is easily taken for one another.
SIGNS = ("+ - * / @ ** // % & |", "+= -= *= /= @= //= =", "< <= > >= == !=", "and or")
NAMES = (
    "sum mean prod std var amax logsumexp", "max min", "amax amin", "maximum minimum", "any all",
    "argmax argmin", "tril triu", "exp log", "sin cos", "sqrt square", "floor ceil round", "log log2",
    "softmax log_softmax sigmoid", "relu tanh gelu", "zeros ones eye", "zeros_like ones_like",
    "cumsum cumprod", "view reshape", "train eval", "append extend", "True False",
)  # fmt: skip
ALONG = (  # what goes along an axis
    " mean sum var std max min amax amin argmax argmin softmax log_softmax cumsum any all sort chunk split "
    "cat stack transpose permute unsqueeze squeeze flatten gather size topk norm prod logsumexp "
)
SETTINGS = ("keepdim=True", "dim=-1", "dim=-1, keepdim=True", "dim=0", "dim=1", "dim=1, keepdim=True",
            "dim=-2", "dim=-2, keepdim=True", "correction=0", "descending=True")  # fmt: skip
AROUND = {  # what may be missing around an expression _
    "sign": ("-_",), "negation": ("~_", "not _"), "root": ("_**0.5",), "square": ("_**2",), "term": ("1-_",),
    "factor": ("1/_", "2*_", "_/2"), "bound": ("_+1", "_-1"), "exponential": ("_.exp()",), "type": ("_.double()",),
    "logarithm": ("_.log()",), "transpose": ("_.mT",), "copy": ("_.clone()",), "rounding": ("_.floor()",),
    "softmax": ("_.softmax(-1)", "_.log_softmax(-1)"),
}  # fmt: skip
KINDS = {
    ast.UnaryOp: "sign", ast.Compare: "comparison", ast.BoolOp: "condition", ast.IfExp: "condition",
    ast.Call: "call of {}", ast.Name: "name {}", ast.Attribute: "name {}", ast.Subscript: "index", ast.Slice: "bound",
    ast.Constant: "value", ast.AugAssign: "assignment", ast.Assign: "assignment",
}  # fmt: skip
KINDS_OF_SIGNS = {"+": "sign", "-": "sign", "*": "factor", "/": "factor", "@": "factor"}


def alike(word: str, groups: tuple[str, ...]) -> list[str]:
    """What is easily taken for a word."""
    return [other for group in map(str.split, groups) if word in group for other in group]


def number(node: Any) -> int | float | None:
    """The value of a number, which may be negative; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        n = number(node.operand)
        return None if n is None else -n
    value: Any = getattr(node, "value", None)
    return value if type(value) in (int, float) else None


def name_of(node: Any) -> str:
    """The name of a variable, of an attribute, or of what is called."""
    node = getattr(node, "func", node)
    return getattr(node, "attr", getattr(node, "id", "a function"))


def kind_of(node: Any, above: Any = None) -> str:
    """What a node is to a student."""
    if number(node) is None:
        return KINDS.get(type(node), "operator").format(name_of(node))
    if isinstance(above, ast.keyword):
        return "axis" if above.arg in ("dim", "axis") else f"argument {above.arg}"
    along = isinstance(above, ast.Call) and f" {name_of(above)} " in ALONG
    return "axis" if along else "bound" if isinstance(above, ast.Slice) else "number"


class Source:
    """A function's source and its edits."""

    def __init__(self, source: str) -> None:
        self.bytes, self.tree = source.encode(), ast.parse(source)
        self.starts = [0, *accumulate(map(len, self.bytes.splitlines(keepends=True)))]

    def span(self, node: Any) -> tuple[int, int]:
        """Where a node starts and ends."""
        a, b = self.starts[node.lineno - 1], self.starts[node.end_lineno - 1]
        return a + node.col_offset, b + node.end_col_offset

    def text(self, node: Any) -> str:
        """The text of a node."""
        return self.bytes[slice(*self.span(node))].decode()

    def gap(self, a: Any, b: Any) -> str:
        """The text between two nodes."""
        return self.bytes[self.span(a)[1] : self.span(b)[0]].decode()

    def edits(self, names: list[str], more: bool) -> Iterator[Edit]:
        """The edits that put one thing in place of another, or those that add something."""
        for above in ast.walk(self.tree):
            changes = [] if more else [(0, *change) for change in self.rearranged(above)]
            for node in ast.iter_child_nodes(above):
                written = isinstance(getattr(node, "ctx", None), ast.Store | ast.Del)
                left_out = written or number(above) is not None or isinstance(above, ast.arguments)
                if isinstance(node, ast.expr) and not left_out:
                    of = self.added if more else self.instead
                    changes += of(node, kind_of(node, above), names)
            for rank, kind, a, b, new in changes:
                start, end = self.span(a)[0], self.span(b)[1]
                source = (self.bytes[:start] + new.encode() + self.bytes[end:]).decode()
                yield rank, kind, a.lineno, source

    def instead(self, node: Any, kind: str, names: list[str]) -> Iterator[tuple]:
        """What could stand in an expression's place."""
        t, n = self.text, number(node)
        new = [t(part) for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
        match node:
            case _ if n is not None:
                near = {n + 1, n - 1, -n, 0, 1, 2, 0.5, 2 * n, n / 2, 1 - n, n * n, 10 * n, n / 10}
                near |= {1 / n, abs(n) ** 0.5} if n else set()
                near |= {int(x) for x in near if abs(x) < 1e9 and x == int(x)}
                new = [*map(repr, near), "-float('inf')", *names]
                new = [*map(str, range(-3, 4))] if kind == "axis" else new
            case ast.BinOp(ast.BinOp(a, inner, b), outer, c):
                new = [ast.unparse(ast.BinOp(a, inner, ast.BinOp(b, outer, c)))]
            case ast.BinOp(a, outer, ast.BinOp(b, inner, c)):
                new = [ast.unparse(ast.BinOp(ast.BinOp(a, outer, b), inner, c))]
            case ast.Name(name):
                new = [*names, *alike(name, NAMES)]
            case ast.Constant():
                new = alike(t(node), NAMES)
            case ast.Attribute(value, name):
                new += [f"({t(value)}).{other}" for other in alike(name, NAMES)]
            case ast.Call(ast.Attribute(value)):
                new += [t(value)]
            case ast.Slice(lower, upper):
                one, two = (t(bound) if bound else "" for bound in (lower, upper))
                new = [f"{two}:{one}", f":{one}", f"{two}:", f"{one}:", f":{two}"]
        form = "{}" if isinstance(node, ast.Slice) else "({})"
        yield from ((0, kind, node, node, form.format(text)) for text in new)

    def added(self, node: Any, kind: str, names: list[str]) -> Iterator[tuple]:
        """What may be missing around an expression, or in a call."""
        if kind in ("axis", "bound"):
            return
        old = f"({self.text(node)})"
        news: list[tuple] = [
            (1, what, text.replace("_", old)) for what in AROUND for text in AROUND[what]
        ]
        if isinstance(node, ast.Call):
            start = old[1:-2].rstrip(", \n") + (", " if node.args or node.keywords else "")
            settings = SETTINGS if f" {name_of(node)} " in ALONG else ()
            news += [(1, "axis", f"{start}{more})") for more in settings]
            news += [(1, kind, f"{start}{more})") for more in names]
        for i, name in enumerate(names):
            for sign in ("+", "-", "*", "/", "@", "**"):
                what, rank = KINDS_OF_SIGNS.get(sign, "power"), 2 + i / len(names)
                news += [(rank, what, f"{old} {sign} {name}"), (rank, what, f"{name} {sign} {old}")]
        yield from ((rank, what, node, node, f"({new})") for rank, what, new in news)

    def rearranged(self, node: Any) -> Iterator[Change]:
        """The parts of a node in another order, with another sign between them, without one of them."""
        parts = [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr | ast.keyword)]
        parts.sort(key=self.span)
        for a, b in combinations(parts, 2):
            yield "order", a, b, f"{self.text(b)}{self.gap(a, b)}{self.text(a)}"
        for a, b in pairwise(parts):
            gap, kind = self.gap(a, b), kind_of(node)
            sign, one, two = gap.strip(" ()"), self.text(a), self.text(b)
            for other in alike(sign, SIGNS):
                yield KINDS_OF_SIGNS.get(sign, kind), a, b, f"{one}{gap.replace(sign, other)}{two}"
            yield KINDS_OF_SIGNS.get(sign, kind), a, b, one + "(" * gap.count("(")
            yield KINDS_OF_SIGNS.get(sign, kind), a, b, two
        for block in (getattr(node, "body", None), getattr(node, "orelse", None)):
            yield from self.statements(block) if isinstance(block, list) else ()

    def statements(self, block: list[Any]) -> Iterator[Change]:
        """Other orders, indentations and forms of some statements; one may be too many."""
        for s in block:
            t, kind = self.text(s), "change in place"
            yield "line itself", s, s, "pass"
            match s:
                case ast.AugAssign(ast.Name(x), op, value):
                    yield kind, s, s, f"{x} = " + ast.unparse(ast.BinOp(ast.Name(x), op, value))
                case ast.Assign([ast.Subscript(ast.Name(x))]):
                    yield kind, s, s, f"{x} = {x}.clone(); {t}"
                case ast.Expr(ast.Call(ast.Attribute(ast.Name(x), method))):
                    yield kind, s, s, f"{x} = {t.replace(method, method.rstrip('_'), 1)}"
                case ast.If(test):
                    for other in "True", "False", f"not ({self.text(test)})":
                        yield "condition", test, test, other
            if hasattr(s, "body"):
                last, out = s.body[-1], "\n" + " " * s.col_offset
                rest = self.bytes[self.span(last)[1] : self.span(s)[1]].decode()
                what = "with" if isinstance(s, ast.With) else "indentation"
                yield what, last, s, f"pass{rest}{out}{self.text(last)}"
        for s, after in pairwise(block):
            text, gap = self.text(after), self.gap(s, after)
            yield "order of the lines", s, after, text + gap + self.text(s)
            if hasattr(s, "body"):
                deeper = " " * (s.body[0].col_offset - s.col_offset)
                yield "indentation", after, after, deeper + text.replace("\n", "\n" + deeper)
