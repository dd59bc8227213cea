"""Score a checkpoint: `python -m jobs.evaluate checkpoint=runs/train-... tokens=runs/tokenize-...`."""

from pipelines.command import job
from pipelines.evaluate import evaluate

main = job(evaluate, lambda lineage: lineage.scores)

if __name__ == "__main__":
    main()
