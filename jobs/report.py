"""Compare evaluations on one page: `python -m jobs.report 'scores=["runs/evaluate-..."]'`."""

from pipelines.command import job
from pipelines.report import report

main = job(report, lambda lineage: lineage.report)

if __name__ == "__main__":
    main()
