"""The single edits that a tutor would try on a student's function; `lines` finds those that repair it."""

import ast
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any, NamedTuple

import torch

Choice = tuple[str, Any]  # what kind of change it is, and what is put in the old place


class Edit(NamedTuple):
    """A change of the tree of a function's source: `store[key] = new`."""

    rank: float  # 0: one thing in place of another; 1: something added; from 2 on: a factor or term
    kind: str  # completes "Look at the ..."
    line: int
    store: Any  # the attributes of a node, or a list of nodes
    key: Any
    new: Any


SUMS, PRODUCTS = (ast.Add, ast.Sub), (ast.Mult, ast.Div, ast.MatMult)
FAMILIES = (
    (*SUMS, *PRODUCTS, ast.FloorDiv, ast.Mod, ast.Pow, ast.BitAnd, ast.BitOr),
    (ast.And, ast.Or),
)
COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
PAIRS = (("left", "right"), ("lower", "upper"), ("body", "orelse"))
LISTS = ("args", "elts", "values", "keywords")
GROUPS = (
    "sum mean prod std var amax logsumexp", "max min", "amax amin", "maximum minimum", "any all",
    "argmax argmin", "tril triu", "exp log", "log log2 log10 log1p", "sin cos", "sqrt square",
    "floor ceil round", "softmax log_softmax sigmoid", "relu tanh gelu", "zeros_like ones_like",
    "zeros ones eye", "cumsum cumprod", "view reshape", "append extend", "train eval", "keys values",
)  # fmt: skip
OF_AXES = (
    "mean sum var std max min amax amin argmax argmin softmax log_softmax cumsum any all sort chunk "
    "split cat stack transpose permute unsqueeze squeeze flatten gather size topk norm prod"
).split()
KEEPDIM, *DIMS = (ast.keyword(k, ast.Constant(v)) for k, v in (("keepdim", True), *(("dim", i) for i in (-1, 0, 1, -2))))  # fmt: skip
SETTINGS = tuple(ast.keyword(k, ast.Constant(v)) for k, v in (("correction", 0), ("descending", True)))
MISSING = {
    "root": lambda x: x**0.5,
    "square": lambda x: x**2,
    "sign": lambda x: -x,
    "negation": lambda x: ~x,
    "exponential": lambda x: torch.as_tensor(x).exp(),
    "logarithm": lambda x: torch.as_tensor(x).log(),
    "transpose": lambda x: x.mT,
    "copy": lambda x: x.clone(),
    "fraction": lambda x: 1 / x,
    "term": lambda x: 1 - x,
    "rounding": lambda x: torch.as_tensor(x).floor(),
    "type": lambda x: x.to(torch.float64),
}
"""What may be missing around an expression, by its kind."""
HELPERS = {f"_{kind}_": f for kind, f in MISSING.items()}


def number(node: ast.AST) -> float | None:
    """The value of a number, which may be negative; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        n = number(node.operand)
        return None if n is None else -n
    value = getattr(node, "value", None)
    return value if type(value) in (int, float) else None


def name_of(node: Any) -> str:
    """The name of a variable, of an attribute, or of what is called."""
    node = getattr(node, "func", node)
    return getattr(node, "attr", getattr(node, "id", ""))


def kind_of(node: Any, above: Any) -> str:
    """What a node is to a student."""
    op = getattr(node, "op", None)
    match node:
        case ast.BinOp() | ast.AugAssign() | ast.UnaryOp(operand=ast.Name() | ast.Call() | ast.BinOp()):
            if isinstance(op, (*SUMS, ast.USub)):
                return "sign"
            return "factor" if isinstance(op, PRODUCTS) else "operator"
        case ast.Call() | ast.Name() | ast.Attribute() if name_of(node):
            return f"{'call of' if isinstance(node, ast.Call) else 'name'} {name_of(node)}"
        case ast.Compare():
            return "comparison"
        case ast.BoolOp() | ast.IfExp() | ast.If():
            return "condition"
        case ast.Subscript() | ast.Slice():
            return "index"
    if isinstance(above, ast.keyword):
        return "axis" if above.arg in ("dim", "axis") else f"argument {above.arg}"
    if isinstance(above, ast.Slice):
        return "bound"
    if isinstance(above, ast.Call) and name_of(above) in OF_AXES:
        return "axis"
    return "value" if number(node) is None else "number"


def changed(node: Any, **fields: Any) -> Any:
    """The node with other values of some fields."""
    return type(node)(**{**vars(node), **fields})


def instead(node: Any, kind: str, names: list[str]) -> Iterator[Choice]:
    """What could stand in an expression's place, made of the same parts."""
    if (n := number(node)) is not None:
        near = {n + 1, n - 1, -n, 0, 1, 2, 0.5, 2 * n, n / 2, 1 - n, n * n, 10 * n, n / 10, -math.inf}
        near |= {1 / n, abs(n) ** 0.5} if n else set()
        near |= {int(x) for x in near if abs(x) < 1e9 and x == int(x)}
        yield from ((kind, ast.Constant(x)) for x in (range(-3, 4) if kind == "axis" else near))
        return
    yield from ((kind, part) for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr))
    for a, b in PAIRS:
        if hasattr(node, a) and hasattr(node, b):
            yield "order", changed(node, **{a: getattr(node, b), b: getattr(node, a)})
    for field in LISTS:
        items = getattr(node, field, [])
        for i, j in combinations(range(len(items)), 2):
            order = [*items[:i], items[j], *items[i + 1 : j], items[i], *items[j + 1 :]]
            yield "order", changed(node, **{field: order})
        for i in range(len(items)):
            yield kind, changed(node, **{field: items[:i] + items[i + 1 :]})
    for family in FAMILIES:
        if isinstance(getattr(node, "op", None), family):
            yield from ((kind, changed(node, op=other())) for other in family)
    for word in (w for group in GROUPS if name_of(node) in group.split() for w in group.split()):
        if isinstance(node, ast.Name | ast.Attribute):
            yield kind, changed(node, **{"id" if isinstance(node, ast.Name) else "attr": word})
    match node:
        case ast.Constant(value=bool(value)):
            yield kind, ast.Constant(not value)
        case ast.Call(func=ast.Attribute(value)):
            yield kind, value
        case ast.Name():
            yield from ((kind, changed(node, id=other)) for other in names if other != node.id)
        case ast.Compare():
            yield from ((kind, changed(node, ops=[other()])) for other in COMPARISONS)
        case ast.Slice():
            yield from (("bound", changed(node, **{bound: None})) for bound in PAIRS[1])
        case ast.BinOp(ast.BinOp(a, inner, b), outer, c):
            yield "parentheses", ast.BinOp(a, inner, ast.BinOp(b, outer, c))
        case ast.BinOp(a, outer, ast.BinOp(b, inner, c)):
            yield "parentheses", ast.BinOp(ast.BinOp(a, outer, b), inner, c)


def added(node: Any, kind: str, names: list[str]) -> Iterator[tuple[float, Choice]]:
    """What may be missing around an expression, or in a call."""
    if isinstance(node, ast.Call) and name_of(node) in OF_AXES:
        for more in ([KEEPDIM], *([d] for d in DIMS), *([d, KEEPDIM] for d in DIMS), *([s] for s in SETTINGS)):
            yield 1, ("axis", changed(node, keywords=[*node.keywords, *more]))
    for i, name in enumerate(names):
        other, rank = ast.Name(name, ast.Load()), 2 + i / len(names)
        if isinstance(node, ast.Call):
            yield 1, (kind, changed(node, args=[*node.args, other]))
        for op in FAMILIES[0][:5]:
            word = "term" if op in SUMS else "factor"
            yield rank, (word, ast.BinOp(node, op(), other))
            yield rank, (word, ast.BinOp(other, op(), node))
    for op, n in ((ast.Add, 1), (ast.Sub, 1), (ast.Mult, 2), (ast.Div, 2)):
        yield 1, ("term" if op in SUMS else "factor", ast.BinOp(node, op(), ast.Constant(n)))
    for kind, helper in zip(MISSING, HELPERS, strict=True):
        yield 1, (kind, ast.Call(ast.Name(helper, ast.Load()), [node], []))


def statements(s: Any) -> Iterator[Choice]:
    """What could stand in a statement's place; nothing at all is one of them."""
    yield "line itself", []
    match s:
        case ast.AugAssign(target, op, value):
            yield from ((kind_of(s, s), [changed(s, op=other())]) for other in FAMILIES[0])
            yield "assignment", [ast.Assign([target], value)]
            if isinstance(target, ast.Name):  # `x -= ...` changes the caller's x
                value = ast.BinOp(ast.Name(target.id, ast.Load()), op, value)
                yield "change in place", [ast.Assign([target], value)]
        case ast.Assign([ast.Name() | ast.Subscript() as target], value):
            yield from (("assignment", [ast.AugAssign(target, op(), value)]) for op in FAMILIES[0][:3])
        case ast.Expr(ast.Call(ast.Attribute(ast.Name(name) as x, method), args, keywords)):
            call = ast.Call(ast.Attribute(x, method.rstrip("_"), ast.Load()), args, keywords)
            yield "change in place", [ast.Assign([ast.Name(name, ast.Store())], call)]
        case ast.If(test, body, orelse):
            yield "condition", body
            yield "condition", orelse
            yield "condition", [ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)]
        case ast.While(body=[*body, last]) | ast.For(body=[*body, last]) | ast.With(body=[*body, last]):
            yield "indentation", [changed(s, body=body or [ast.Pass()]), last]


def edits(root: Any, names: Iterable[str]) -> Iterator[Edit]:
    """All edits of a function; of its names, those that it uses least come first."""
    used = Counter(n.id for n in ast.walk(root) if isinstance(n, ast.Name))
    names = sorted(names, key=lambda name: (used[name], name))
    for node in ast.walk(root):
        for field, value in ast.iter_fields(node):
            items = value if isinstance(value, list) else [value]
            for i, child in enumerate(items):
                place = (value, i) if items is value else (vars(node), field)
                if isinstance(child, ast.stmt):
                    for kind, new in statements(child):
                        yield Edit(0, kind, child.lineno, vars(node), field, [*items[:i], *new, *items[i + 1 :]])
                    if len(items) > i + 1:
                        new = [*items[:i], items[i + 1], child, *items[i + 2 :]]
                        yield Edit(0, "order of the lines", child.lineno, vars(node), field, new)
                    if len(items) > i + 1 and hasattr(child, "body"):
                        new = [*items[:i], changed(child, body=[*child.body, items[i + 1]]), *items[i + 2 :]]
                        yield Edit(1, "indentation", items[i + 1].lineno, vars(node), field, new)
                if not isinstance(child, ast.expr) or hasattr(child, "ctx") and not isinstance(child.ctx, ast.Load):
                    continue
                if number(node) is not None:  # the 1 of -1
                    continue
                kind = kind_of(child, node)
                for kind_, new in instead(child, kind, names):
                    yield Edit(0, kind_, child.lineno, *place, new)
                for rank, (kind_, new) in added(child, kind, names) if field != "func" and kind != "axis" else ():
                    yield Edit(rank, kind_, child.lineno, *place, new)
