"""All tokenizers: a specification opens as a `Tokenizer`, whose JSON is again a specification."""

from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from discdiff.data.bytelevel import Bytes
from discdiff.data.characters import Characters, Symbols, Text8
from discdiff.data.encoding import SEPARATOR, Encoded, Tokenizer
from discdiff.data.pretrained import Definition, Pretrained
from discdiff.types import DiscdiffError

AnyTokenizer = Annotated[
    Characters | Text8 | Symbols | Bytes | Pretrained | Definition, Field(discriminator="kind")
]

__all__ = [
    "SEPARATOR",
    "AnyTokenizer",
    "Bytes",
    "Characters",
    "Definition",
    "Encoded",
    "Pretrained",
    "Symbols",
    "Text8",
    "Tokenizer",
    "from_json",
]


def from_json(text: str) -> Tokenizer:
    """The tokenizer that `to_json` described, such as the copy that a store keeps."""
    try:
        spec: AnyTokenizer = TypeAdapter[AnyTokenizer](AnyTokenizer).validate_json(text)
    except ValidationError as error:
        raise DiscdiffError(
            f"this describes no tokenizer: {error.errors()[0]['msg']}; give what to_json wrote"
        ) from error
    return spec.open()
