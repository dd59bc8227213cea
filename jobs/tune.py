"""Search among versions of a method: `python -m jobs.tune tokens=runs/tokenize-... SPEC.toml`."""

from pipelines.command import job
from pipelines.tune import tune

main = job(tune, lambda lineage: lineage.trials)

if __name__ == "__main__":
    main()
