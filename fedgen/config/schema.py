"""What an option's class says about itself, read from its source without importing it.

The class is the schema: field names, annotations and defaults are its dataclass fields, the text is its docstring.
Importing an option costs a torch import (seconds on a small machine), so listing options and completing configs read
the syntax tree.
"""

import ast
import importlib.util
import inspect
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

REQUIRED = "???"
"""Stands for the value of a field without default; Hydra's own mark for a value that is still missing."""


@dataclass(frozen=True)
class Field:
    """One field of an option.

    Attributes:
        name: as it is typed.
        annotation: its type, as written in the class.
        default: its value if it is not given; REQUIRED if it must be given.
        text: what the docstring says about it.
    """

    name: str
    annotation: str
    default: object
    text: str


@dataclass(frozen=True)
class Schema:
    """An option's class.

    Attributes:
        target: dotted path of the class.
        summary: first line of the class's docstring.
        citation: module docstring, where papers are cited.
        fields: in order of declaration.
    """

    target: str
    summary: str
    citation: str
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Module:
    """A parsed module.

    Attributes:
        tree: its syntax tree.
        values: name → expression assigned to it at module level.
        imports: local name → (module, name in it) for `from module import name`.
    """

    tree: ast.Module
    values: dict[str, ast.expr] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)


def read(target: str) -> Schema:
    """The schema of the class at a dotted path.

    Raises:
        LookupError: there is no such module, or no such class in it.
    """
    module_name, _, class_name = target.rpartition(".")
    module = _module(module_name)
    node = next((n for n in module.tree.body if isinstance(n, ast.ClassDef) and n.name == class_name), None)
    if node is None and class_name in module.imports:
        return read(".".join(module.imports[class_name]))
    if node is None:
        raise LookupError(f"{module_name} has no class {class_name}")
    docstring = ast.get_docstring(node) or ""
    texts = attribute_texts(docstring)
    fields = tuple(
        Field(
            name=n.target.id,
            annotation=ast.unparse(n.annotation),
            default=REQUIRED if n.value is None else _value(n.value, module),
            text=texts.get(n.target.id, ""),
        )
        for n in node.body
        if isinstance(n, ast.AnnAssign)
        and isinstance(n.target, ast.Name)
        and "ClassVar" not in ast.unparse(n.annotation)
    )
    return Schema(target, docstring.partition("\n")[0], ast.get_docstring(module.tree) or "", fields)


def attribute_texts(docstring: str) -> dict[str, str]:
    r"""Field → text from the `Attributes:` section of a Google-style docstring.

    >>> attribute_texts("A.\n\nAttributes:\n    rate: step size,\n        in metres.\n    steps: how many.")
    {'rate': 'step size, in metres.', 'steps': 'how many.'}
    """
    _, _, section = inspect.cleandoc(docstring).partition("Attributes:\n")
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        if match := re.match(r" {4}(\w+)(?: \([^)]*\))?: *(.*)", line):
            name, texts[match[1]] = match[1], match[2]
        elif line.strip() and name:
            texts[name] += " " + line.strip()
    return texts


@cache
def _module(name: str) -> Module:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise LookupError(f"there is no module {name}")
    module = Module(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            module.values[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            module.values[node.target.id] = node.value
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            module.imports.update({a.asname or a.name: (node.module, a.name) for a in node.names})
    return module


def _value(node: ast.expr, module: Module) -> object:
    """The value of a default: a literal, a constant of the module, or a constant of a module that it imports.

    Raises:
        LookupError: it is none of these, so that it is known only by running the module.
    """
    if isinstance(node, ast.Name) and node.id in module.values:
        return _value(module.values[node.id], module)
    if isinstance(node, ast.Name) and node.id in module.imports:
        origin, name = module.imports[node.id]
        return _value(ast.Name(name), _module(origin))
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in module.imports:
        origin = ".".join(module.imports[node.value.id])
        return _value(ast.Name(node.attr), _module(origin))
    if isinstance(node, ast.Tuple | ast.List):
        return [_value(element, module) for element in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise LookupError(f"default {ast.unparse(node)} is not a literal or a named constant") from None
