"""Names of the dimensions of a decoder's weights: which of them belong together and may be cut together.

An inner axis lies between projections: those that open it write its units, the one that closes it reads them. A unit of
the attention axis is a key-value head with all its query heads, because grouped queries find their key by position
(Ainslie et al., "GQA", EMNLP 2023, section 2.2); inside a head nothing is cut, because rotary positions turn pairs of
its entries (Su et al., "RoFormer", 2021, section 3.2.2). Which projections belong together a model says itself, in
the plan for tensor parallelism that transformers ships with most families (column-wise opens, row-wise closes); GPT-2
has none and stands in a table here. A unit of the vocabulary is a token: a row of the embedding, a row of the head and
an entry of its bias. Whatever is declared is believed only after ``selfcheck``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedgen.errors import ModelError
from fedgen.types import Axes, Dim


@dataclass(frozen=True)
class Group:
    """The projections around one inner axis of a layer, by their names in the layer.

    Attributes:
        kind: `kv` for attention, `ffn` for the feed-forward part.
        opens: projections whose outputs lie on the axis.
        closes: the projection whose inputs do.
        fused: how many tensors of the axis's width lie one after the other in an opening projection.
    """

    kind: str
    opens: tuple[str, ...]
    closes: str
    fused: int = 1


TABLE: dict[str, tuple[Group, ...]] = {
    "gpt2": (
        Group("kv", ("attn.c_attn",), "attn.c_proj", fused=3),
        Group("ffn", ("mlp.c_fc",), "mlp.c_proj"),
    ),
}
"""Families without a plan of their own, by `model_type`."""


def axes_of(module: nn.Module) -> Axes:
    """Names of the dimensions of all weights of a decoder.

    Args:
        module: a causal language model of transformers; may be on the meta device.

    Returns:
        Axes `ffn.L`, `kv.L` and `layer`, and besides `residual` for the width that all layers share and `vocab` for the
        tokens, where embedding and head have a row for each.

    Raises:
        ModelError: nothing says which dimensions of this family belong together, or its layers are not alike.
    """
    config: Any = module.config
    _refuse_rotary(config)
    groups = _groups(config)
    prefix, layers = layers_of(module)
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    names: dict[str, list[Dim | None]] = {name: [None] * len(shape) for name, shape in shapes.items()}
    width = module.get_input_embeddings().weight.shape[-1]  # type: ignore[operator]
    units: dict[str, int] = {"layer": len(layers), "residual": width}
    closings = {}
    for number, layer in layers:
        for group in groups:
            axis, closing = f"{group.kind}.{number}", _projection(layer, group.closes)
            inputs = _sizes(closing)[0]
            outputs = {name: _sizes(_projection(layer, name))[1] // group.fused for name in group.opens}
            units[axis] = min(outputs.values())
            if group.kind == "kv":
                attention: Any = layer.get_submodule(group.closes.rpartition(".")[0])
                units[axis] //= attention.head_dim
            closings[axis] = f"{prefix}{number}.{group.closes}.weight"
            for name, size in outputs.items():
                dim = Dim(axis, size // units[axis], tuple(size * part for part in range(group.fused)))
                _name_linear(names, f"{prefix}{number}.{name}", _projection(layer, name), None, dim)
            _name_linear(names, f"{prefix}{number}.{group.closes}", closing, Dim(axis, inputs // units[axis]), None)
    _name_residual(module, names, width, [f"{prefix}{number}.{g}" for number, _ in layers for g in _members(groups)])
    units |= _name_vocabulary(module, names)
    members = {
        name: ("layer", int(name.removeprefix(prefix).partition(".")[0])) for name in shapes if name.startswith(prefix)
    }
    input_first = {
        f"{path.removesuffix('.base_layer')}.weight" for path, child in module.named_modules() if _is_input_first(child)
    }
    return Axes({n: tuple(dims) for n, dims in names.items()}, units, members, closings, frozenset(input_first))


def layers_of(module: nn.Module) -> tuple[str, list[tuple[int, nn.Module]]]:
    """Where the decoder's layers are: what their names begin with, and each with its number in the whole model.

    Raises:
        ModelError: there is no list of layers.
    """
    decoder = module.get_decoder()  # type: ignore[operator]
    for path, child in module.named_modules():
        if isinstance(child, nn.ModuleList) and any(child is own for own in decoder.children()):
            return f"{path}.", [(int(number), layer) for number, layer in child.named_children()]
    raise ModelError(
        f"{type(module).__name__} has no list of layers; no part of it can be made, and no layer recomputed"
    )


def _groups(config: Any) -> tuple[Group, ...]:  # noqa: ANN401 - transformers' configurations share no typed fields
    if config.model_type in TABLE:
        return TABLE[config.model_type]
    groups = tuple(_from_plan(config.base_model_tp_plan or {}))
    if {group.kind for group in groups} != {"kv", "ffn"}:
        raise ModelError(
            f"parts of a {config.model_type} model cannot be made: nothing says which dimensions of its weights belong "
            f"together. Declare it in fedgen/model/axes.py: add {config.model_type!r} to TABLE with the projections of "
            "a layer that open and close its attention (`kv`) and its feed-forward part (`ffn`); or use "
            "extraction=full. Known without: families whose configuration has a plain tensor-parallel plan (Llama, "
            f"Mistral, Qwen2, Qwen3), and {', '.join(TABLE)}"
        )
    return groups


def _from_plan(plan: dict[str, str]) -> Iterator[Group]:
    """Pairs the row-wise projection of a block with the column-wise ones beside it."""
    blocks: dict[str, dict[str, list[str]]] = {}
    for pattern, style in plan.items():
        if pattern.startswith("layers.*."):
            name = pattern.removeprefix("layers.*.")
            blocks.setdefault(name.rpartition(".")[0], {}).setdefault(style, []).append(name)
    for styles in blocks.values():
        opens, closes = styles.get("colwise", []), styles.get("rowwise", [])
        # Fused or gathered projections and experts come under other words; nothing is guessed about them.
        others = [style for style in styles if style not in ("colwise", "rowwise") and "replicated" not in style]
        if opens and len(closes) == 1 and not others:
            heads = {name.rpartition(".")[2] for name in opens} == {"q_proj", "k_proj", "v_proj"}
            yield Group("kv" if heads else "ffn", tuple(opens), closes[0])


def _refuse_rotary(config: Any) -> None:  # noqa: ANN401
    rope = config.to_dict().get("rope_parameters") or {}
    if "mrope_section" in rope:
        raise ModelError(
            f"parts of a {config.model_type} model cannot be made: its rotary positions come in sections "
            "(mrope_section), which is not supported; use extraction=full"
        )


def _members(groups: tuple[Group, ...]) -> list[str]:
    """Blocks of a layer that groups lie in."""
    return sorted({name.rpartition(".")[0] for group in groups for name in (*group.opens, group.closes)})


def _projection(layer: nn.Module, name: str) -> nn.Module:
    """A projection of a layer; of one that an adapter stands beside, the frozen one."""
    try:
        found = layer.get_submodule(name)
    except AttributeError as error:
        raise ModelError(
            f"parts of this model cannot be made: its layers are not alike, and one ({type(layer).__name__}) has no "
            f"{name}; use extraction=full"
        ) from error
    return dict(found.named_children()).get("base_layer", found)


def _is_input_first(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a projection."""
    weight: Any = module.weight
    first, second = weight.shape
    return (first, second) if _is_input_first(module) else (second, first)


def _name_linear(
    names: dict[str, list[Dim | None]], path: str, module: nn.Module, inputs: Dim | None, outputs: Dim | None
) -> None:
    residual = Dim("residual")
    weight: list[Dim | None] = [outputs or residual, inputs or residual]
    names[f"{path}.weight"] = weight[::-1] if _is_input_first(module) else weight
    if f"{path}.bias" in names:
        # The bias of a closing projection is added to what all layers share: it belongs to no inner axis.
        names[f"{path}.bias"] = [outputs or residual]


def _name_residual(module: nn.Module, names: dict[str, list[Dim | None]], width: int, blocks: list[str]) -> None:
    """Names the width that all layers share wherever no inner block has spoken: embeddings, norms, the head."""
    residual = Dim("residual")
    for name, parameter in module.named_parameters():
        inside = any(name.startswith(f"{block}.") for block in blocks)
        if not inside and parameter.shape[-1] == width and names[name][-1] is None:
            names[name][-1] = residual


def _name_vocabulary(module: nn.Module, names: dict[str, list[Dim | None]]) -> dict[str, int]:
    """Names the rows of the embedding and of the head, which may be one tensor; says how many there are."""
    embedding: Any = module.get_input_embeddings()  # type: ignore[operator]
    head: Any = module.get_output_embeddings()  # type: ignore[operator]
    num_tokens = embedding.weight.shape[0]
    if head.weight.shape[0] != num_tokens:
        return {}
    rows = {id(tensor) for tensor in (embedding.weight, head.weight, dict(head.named_parameters()).get("bias"))}
    for name, parameter in module.named_parameters():
        if id(parameter) in rows:
            names[name][0] = Dim("vocab")
    return {"vocab": num_tokens}
