"""What `--matrix` prints: which method takes which part of a sampler, and which kind of prompt."""

from collections.abc import Iterator
from typing import Any, get_args

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from discdiff.methods import AnyMethod, D3pm, FlowMatching, Mdlm, Sedd, Udlm
from discdiff.processes import Hybrid, Mask, Matrix, Uniform
from discdiff.processes.kernels import Gaussian
from discdiff.samplers.matrix import Cell, matrix

ON_OTHER_NOISE = (
    Sedd(process=Uniform()),
    Sedd(process=Matrix(kernel=Gaussian(width=0.5))),
    D3pm(process=Mask()),
    D3pm(process=Hybrid()),
    FlowMatching(process=Mask()),
)
"""Methods that take more than one kind of noise, beside the one that they have by default."""
TAKES = "●"
BESIDES = (
    "classifier_based guidance is given with classifier=..., the checkpoint of method classifier that was "
    "trained on stores that are classes, with the tokenizer, the length and the noise of what it leads."
)


def methods() -> Iterator[Any]:
    """Every family as it is by default, with MDLM inside or UDLM as teacher where it needs another, and on
    other noise.
    """
    needed = {"inner": Mdlm(), "teacher": Udlm()}
    for family in get_args(get_args(AnyMethod)[0]):
        fields = family.model_fields
        yield family(**{name: each for name, each in needed.items() if name in fields})
    yield from ON_OTHER_NOISE


def show(console: Console) -> None:
    """Print a column for each group of methods that take the same, and why they don't take the rest."""
    groups = grouped(matrix(methods()))
    names = {group: chr(ord("A") + index) for index, group in enumerate(groups)}
    console.print(_legend(names))
    console.print(_parts(groups, names))
    console.print(_refusals(groups, names))
    console.print(BESIDES)


def grouped(cells: list[Cell]) -> dict[tuple[str, ...], list[Cell]]:
    """The methods that take the same parts, with the cells of the first; one that takes none, and always for
    the same reason, is apart.
    """
    columns: dict[str, list[Cell]] = {}
    for cell in cells:
        columns.setdefault(cell.method, []).append(cell)
    same: dict[tuple[str | bool | None, ...], list[str]] = {}
    for method, column in columns.items():
        reasons = {cell.refusal for cell in column}
        why = reasons.pop() if len(reasons) == 1 else None
        same.setdefault((why, *(cell.refusal is None for cell in column)), []).append(method)
    return {tuple(group): columns[group[0]] for group in same.values()}


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def _legend(names: dict[tuple[str, ...], str]) -> Table:
    table = _table("Methods that take the same parts", "", "methods")
    for group, name in names.items():
        table.add_row(name, escape(", ".join(group)))
    return table


def _parts(groups: dict[tuple[str, ...], list[Cell]], names: dict[tuple[str, ...], str]) -> Table:
    table = _table("Parts of a sampler, and prompts", "", "", *names.values())
    before = ""
    for row in zip(*groups.values(), strict=True):
        field, part = row[0].field, row[0].part
        if field != before:
            table.add_section()
        marks = [TAKES if cell.refusal is None else "·" for cell in row]
        table.add_row("" if field == before else field, "" if part == field else part, *marks)
        before = field
    return table


def _refusals(groups: dict[tuple[str, ...], list[Cell]], names: dict[tuple[str, ...], str]) -> Table:
    table = _table("Why not", "", "parts", "reason")
    for group, column in groups.items():
        reasons: dict[str, list[str]] = {}
        for cell in column:
            if cell.refusal is not None:
                reasons.setdefault(cell.refusal, []).append(cell.part)
        table.add_section()
        for number, (reason, parts) in enumerate(reasons.items()):
            table.add_row(names[group] if number == 0 else "", escape(", ".join(parts)), escape(reason))
    return table
