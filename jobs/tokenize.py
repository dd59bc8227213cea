"""Make a token store of a corpus: `python -m jobs.tokenize corpus.url=/data/text tokenizer.kind=bytes`."""

from pipelines.command import job
from pipelines.tokenize import tokenize

main = job(tokenize, lambda lineage: lineage.tokens)

if __name__ == "__main__":
    main()
