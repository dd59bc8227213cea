"""Strings that tokenizers disagree about: what a new encoder must get right before it may be used."""

import unicodedata

_FRAGMENTS = (
    *(
        "a",
        "Z",
        "é",
        "e\u0301",
        "ß",
        "İ",
        "ǅ",
        "ﬁ",
        "Ω",
        "Å",
        "你好",
        "日本語",
        "한국어",
        "नमस्ते",
        "שָׁלוֹם",
        "مرحبا",
        "ไทย",
        "Ĳ",
    ),
    *(
        "0",
        "12345678901",
        "½",
        "٣",
        "Ⅷ",
        "'s",
        "'LL",
        "’re",
        "don't",
        "I'M",
        "_x",
        "--",
        "...",
        "!?",
        "#!/bin",
        "</s>",
    ),
    *(
        " ",
        "  ",
        "     ",
        "\t",
        "\t\t",
        "\n",
        "\n\n",
        "\r\n",
        " \n ",
        "\u00a0",
        "\u2003",
        "\u3000",
        "\u200b",
        "\ufeff",
        "\x00",
    ),
    *(
        "\x1f",
        "\x85",
        "\u2028",
        "\u202e",
        "\u200d",
        "👩‍👩‍👧‍👦",
        "🇺🇳",
        "👍🏽",
        "𝔘",
        "\U0010ffff",
        "\ufffd",
        "\ud7ff",
        "\ue000",
    ),
    *(
        "<|endoftext|>",
        "<|im_start|>",
        "[MASK]",
        "[SEP]",
        "<s>",
        "<unk>",
        "▁",
        "Ġ",
        "Ċ",
        "\\n",
        "http://a.b/c?d=e&f",
        "x" * 300,
    ),
)


def _strings() -> list[str]:
    pairs = [a + b for a in _FRAGMENTS for b in _FRAGMENTS]
    state, walks = 1, list[str]()
    for _ in range(300):
        walk = ""
        for _ in range(12):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            walk += _FRAGMENTS[(state >> 33) % len(_FRAGMENTS)]
        walks.append(walk)
    every = "".join(chr(c) for c in range(0x3400) if unicodedata.category(chr(c)) not in ("Cs", "Cn"))
    return ["", *pairs, *walks, every, *(every[i : i + 40] for i in range(0, len(every), 40))]


PROBES = _strings()
