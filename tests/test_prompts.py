"""Prompts: what they give and what they leave, keyed by row, and the sentences for those that can't be."""

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from discdiff.data.bytelevel import Bytes
from discdiff.data.characters import Characters
from discdiff.data.prompts import AnyPrompt, Blank, Canvases, Hole, Prefix, Prompts, Several, Template
from discdiff.types import DiscdiffError

TOKENIZER = Characters(alphabet="abcdef").open()
LENGTH = 8


def opened(prompt, length=LENGTH, tokenizer=TOKENIZER):
    return Prompts(prompt, tokenizer, length)


def shown(prompts, row=0):
    """Context as text, free positions as dots."""
    canvas = prompts.canvas(row, row + 1)
    text = TOKENIZER.decode(canvas.tokens[0])
    return "".join("." if free else letter for letter, free in zip(text, canvas.free[0], strict=True))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (Blank(), "........"),
        (Prefix(text="abc"), "abc....."),
        (Prefix(text=""), "........"),
        (Template(parts=(Hole(), "abc")), ".....abc"),
        (Template(parts=("ab", 3, "cd")), "ab...cd."),
        (Template(parts=("ab", Hole(), "cd", 1, "e")), "ab..cd.e"),
        (Template(parts=(8,)), "........"),
        (Template(parts=("abcdefa", Hole(), "b")), "abcdefab"),
    ],
    ids=repr,
)
def test_a_prompt_gives_what_it_says_and_leaves_the_rest(prompt, expected):
    if "." not in expected:
        with pytest.raises(DiscdiffError, match="nothing is left to draw"):
            opened(prompt)
        return
    assert shown(opened(prompt)) == expected
    assert TypeAdapter(AnyPrompt).validate_json(prompt.model_dump_json()) == prompt


def test_only_the_allowed_tokens_of_a_hole_are_allowed():
    prompt = Template(parts=("a", Hole(length=2, allowed=("b", 3, "b")), 1, Hole(allowed=("f",))))
    allowed = opened(prompt).canvas(0, 3).allowed
    assert allowed is not None
    assert allowed.shape == (3, LENGTH, TOKENIZER.size)
    each = [set(row.nonzero()[:, 0].tolist()) for row in allowed[2]]
    everything = set(range(TOKENIZER.size))
    b, f = TOKENIZER.encode_batch(["b", "f"]).ids.tolist()
    assert each == [everything, {b, 3}, {b, 3}, everything, *[{f}] * 4]
    assert opened(Prefix(text="a")).canvas(0, 3).allowed is None


def test_prompts_in_turn_are_keyed_by_row():
    several = Several(prompts=(Prefix(text="ab"), Template(parts=(Hole(), "c")), Blank()))
    prompts = opened(several)
    whole = prompts.canvas(0, 7)
    assert [shown(prompts, row) for row in (0, 1, 2, 3, 4)] == [
        "ab......",
        ".......c",
        "........",
        "ab......",
        ".......c",
    ]
    part = prompts.canvas(3, 5)
    assert torch.equal(part.tokens, whole.tokens[3:5])
    assert torch.equal(part.free, whole.free[3:5])
    assert part.rows.tolist() == [3, 4]


def test_restrictions_of_prompts_in_turn_stay_with_their_rows():
    prompts = opened(Several(prompts=(Prefix(text="ab"), Template(parts=(Hole(allowed=("c", "d")),)))))
    allowed = prompts.canvas(1, 5).allowed
    assert allowed is not None
    assert allowed.sum((-1, -2)).tolist() == [2 * LENGTH, TOKENIZER.size * LENGTH] * 2
    assert prompts.canvas(2, 3).allowed is None


@pytest.fixture
def saved(tmp_path):
    def save(columns):
        path = tmp_path / "prompts.parquet"
        pq.write_table(pa.table(columns), path)
        return Canvases(url=str(path), digest=hashlib.sha256(path.read_bytes()).hexdigest())

    return save


def test_a_table_of_canvases(saved):
    table = saved(
        {
            "tokens": [[0, 9, 2], [1, 1, 1, 3]],
            "free": [[False, True, False], [False, False, True, True]],
            "allowed": [[[], [4, 5], []], None],
        }
    )
    prompts = opened(table)
    assert [shown(prompts, 0), shown(prompts, 1)] == ["a.c.....", "bb......"]
    allowed = prompts.canvas(0, 2).allowed
    assert allowed is not None
    assert allowed[0, 1].nonzero()[:, 0].tolist() == [4, 5]
    assert allowed[1].all()
    assert "url" not in table.identity()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"]}, "columns tokens and free"),
        ({"tokens": [[0, 1]], "free": [[True]]}, "2 tokens and 1 free"),
        ({"tokens": [[0, 7]], "free": [[True, False]]}, "row 0: id 7 is not in the vocabulary of"),
        ({"tokens": [[0] * 9], "free": [[True] * 9]}, "takes 9 positions and samples have 8"),
    ],
)
def test_a_table_that_is_none_of_canvases_is_refused(saved, columns, message):
    with pytest.raises(DiscdiffError, match=message):
        opened(saved(columns))


def test_another_file_than_the_one_meant_is_refused(saved, tmp_path):
    table = saved({"tokens": [[0]], "free": [[True]]})
    with pytest.raises(DiscdiffError, match="other prompts"):
        opened(table.model_copy(update={"digest": "0" * 64}))
    with pytest.raises(DiscdiffError, match="can't be read"):
        opened(table.model_copy(update={"url": str(tmp_path / "none.parquet")}))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prefix(text="abcdefabc"), "takes 9 positions and samples have 8"),
        (Prefix(text="abcdefab"), "nothing is left to draw"),
        (Prefix(text="xyz"), "'x'"),
        (Template(parts=(Hole(allowed=("ab",)),)), "'ab' is no token of this vocabulary: it is 2 tokens"),
        (Template(parts=(Hole(allowed=(99,)),)), "99 is no token of this vocabulary: ids are 0 to"),
        (Template(parts=(Hole(allowed=("z",)),)), "'z'"),
    ],
    ids=repr,
)
def test_a_prompt_that_can_t_be_is_refused_with_a_sentence(prompt, message):
    with pytest.raises(DiscdiffError, match=message):
        opened(prompt)


def test_two_holes_can_t_share_the_rest():
    with pytest.raises(ValidationError, match="all but one a length"):
        Template(parts=(Hole(), "a", Hole()))


def test_texts_are_encoded_by_the_tokenizer_alone():
    """Text that spells the separator is text."""
    tokenizer = Bytes().open()
    prompts = opened(Prefix(text="é<|endoftext|>"), length=32, tokenizer=tokenizer)
    canvas = prompts.canvas(0, 1)
    assert tokenizer.decode(canvas.tokens[0][~canvas.free[0]]) == "é<|endoftext|>"
    assert int((~canvas.free).sum()) == 2 + len("<|endoftext|>")
    assert tokenizer.separator not in canvas.tokens[0][~canvas.free[0]].tolist()
