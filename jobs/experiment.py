"""From a corpus to a report: `python -m jobs.experiment --preset smoke`."""

from pipelines.command import experiment_job

main = experiment_job()

if __name__ == "__main__":
    main()
