"""Draw samples of a checkpoint: `python -m jobs.generate checkpoint=runs/train-... count=1000`."""

from pipelines.command import job
from pipelines.generate import generate

main = job(generate, lambda lineage: lineage.samples)

if __name__ == "__main__":
    main()
