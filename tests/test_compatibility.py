"""`--matrix`: every family in a column, every part in a row, each refusal with its reason, on a terminal."""

import io
import re
from typing import get_args

from rich.console import Console
from typer.testing import CliRunner

from discdiff.methods import AnyMethod
from discdiff.samplers.matrix import PARTS, matrix
from jobs import generate
from pipelines.compatibility import ON_OTHER_NOISE, TAKES, grouped, methods, show

FAMILIES = get_args(get_args(AnyMethod)[0])


def test_every_family_and_part_is_there() -> None:
    assert {type(method) for method in methods()} == set(FAMILIES)
    groups = grouped(matrix(methods()))
    assert sum(len(group) for group in groups) == len(FAMILIES) + len(ON_OTHER_NOISE)
    parts = sum(len(values) for values in PARTS.values()) + 4
    assert {len(column) for column in groups.values()} == {parts}


def test_the_table_says_what_the_cells_say_within_eighty_columns() -> None:
    console = Console(file=io.StringIO(), width=80)
    show(console)
    text = console.file.getvalue()  # pyright: ignore
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    groups = grouped(matrix(methods()))
    marks = [re.findall(f"[{TAKES}·]", line) for line in lines if re.search(f"[{TAKES}·]", line)]
    rows = list(zip(*groups.values(), strict=True))
    assert marks == [[TAKES if cell.refusal is None else "·" for cell in row] for row in rows]
    flat = " ".join(text.split())
    assert "mdlm (mask)" in flat
    assert "an order needs mask noise" in flat


def test_the_job_prints_it_and_stops(tmp_path) -> None:
    result = CliRunner().invoke(generate.main, ["--matrix", "--root", str(tmp_path / "runs")])
    assert result.exit_code == 0, result.output
    assert "Parts of a sampler, and prompts" in result.output
    assert not (tmp_path / "runs").exists()


def test_what_draws_nothing_says_so_itself() -> None:
    groups = grouped(matrix(methods()))
    for group, word in ((("autoencoder",), "autoencoder"), (("classifier (mask)",), "classifier")):
        (reason,) = {cell.refusal for cell in groups[group]}
        assert f"{word} generates nothing by itself" in (reason or "")


def test_classifier_based_guidance_is_granted_where_it_can_be_given_and_how_is_said() -> None:
    granted = {
        cell.method for cell in matrix(methods()) if cell.part == "classifier_based" and cell.refusal is None
    }
    assert {"mdlm (mask)", "udlm (uniform)", "sedd (mask)", "sedd (uniform)", "duo (uniform)"} <= granted
    assert not {method for method in granted if "(mask)" not in method and "(uniform)" not in method}
    assert not granted & {"block", "genmd4 (mask)", "classifier (mask)", "gidd (hybrid)"}
    console = Console(file=io.StringIO(), width=80)
    show(console)
    text = " ".join(console.file.getvalue().split())  # pyright: ignore
    assert (
        "classifier_based guidance is given with classifier=..., the checkpoint of method classifier" in text
    )
