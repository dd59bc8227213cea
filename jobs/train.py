"""Train a method on a token store: `python -m jobs.train tokens=runs/tokenize-... method.kind=mdlm`."""

from pipelines.command import job
from pipelines.train import train

main = job(train, lambda lineage: lineage.models)

if __name__ == "__main__":
    main()
