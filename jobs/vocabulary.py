"""Train a BPE vocabulary: `python -m jobs.vocabulary corpus.kind=files corpus.url=/data/text size=32000`."""

from pipelines.command import job
from pipelines.vocabulary import vocabulary

main = job(vocabulary)

if __name__ == "__main__":
    main()
