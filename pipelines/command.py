"""What a job's command line does: a specification from arguments, a runner, one line for a mistake.

    python -m jobs.train SPEC.toml recipe.steps=100 --root s3://bucket/runs
    python -m jobs.experiment --preset smoke --dry-run

Exits with 0 when the artifact is there, 2 for a mistake in what was asked for, 1 for any other failure and
130 when interrupted; what went wrong is one line on standard error.
"""

import sys
import tempfile
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from discdiff.types import DiscdiffError
from pipelines import compatibility, presets
from pipelines.experiment import Experiment, Lineage
from pipelines.failure import StageError, sentence
from pipelines.inspection import describe
from pipelines.placement import Placement
from pipelines.plan import Plan
from pipelines.root import local_state, root_or_default
from pipelines.runner import Runner
from pipelines.screen import Screen
from pipelines.specs import specification, validated
from pipelines.stage import Stage
from pipelines.summary import summarize
from pipelines.tracking import Mlflow

Arguments = Annotated[list[str] | None, typer.Argument(help="A TOML file, then key.sub=value on top of it.")]
Preset = Annotated[str | None, typer.Option(help=f"An experiment by name: {', '.join(presets.names())}.")]
Root = Annotated[
    str | None, typer.Option(help="Where artifacts lie: a path, or a URI such as s3://bucket/x.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run, and which field made it new.")]
Inspect = Annotated[str | None, typer.Option(help="Print what the artifact at a URI holds, and stop.")]
Matrix = Annotated[
    bool, typer.Option("--matrix", help="Print which method takes which part of a sampler, and stop.")
]
Tune = Annotated[
    bool, typer.Option("--tune", help="With a preset: search noise schedules for one more model.")
]
Workers = Annotated[int, typer.Option(help="Workers of a stage.")]
Cpus = Annotated[float, typer.Option(help="CPUs of a worker.")]
Gpus = Annotated[float, typer.Option(help="GPUs of a worker.")]
Concurrent = Annotated[int, typer.Option(help="Stages of one kind at a time.")]
Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster; else RAY_ADDRESS, else a private one.")
]
Dashboard = Annotated[int | None, typer.Option(help="Port for the dashboard of a private cluster.")]


Work = Callable[[Runner, Sequence[str], Experiment | None], None]
"""What a job does with a runner, arguments and the experiment of a preset."""


def job(stage: Stage[Any, Any], part: Callable[[Lineage], Any] | None = None) -> Callable[[], None]:
    """The command line of a stage; with a preset it runs that part of an experiment, if it is one."""

    def work(run: Runner, arguments: Sequence[str], preset: Experiment | None) -> None:
        if preset is None:
            made = run(stage, specification(stage.spec, arguments))
        elif part is None:
            raise DiscdiffError(
                f"a preset was given, but no experiment has a {stage.name} stage; "
                "give what it is to be made from, key.sub=value"
            )
        else:
            made = _within(run, specification(Experiment, arguments, preset), part)
        for artifact in made if isinstance(made, list) else [made]:
            run.screen.say("at", artifact.label or stage.name, artifact.uri)

    return command(work, (stage.body.__doc__ or "").splitlines()[0])


def experiment_job() -> Callable[[], None]:
    """The command line of whole experiments; ends with a table and where to look further."""

    def work(run: Runner, arguments: Sequence[str], preset: Experiment | None) -> None:
        report = _within(run, specification(Experiment, arguments, preset), lambda lineage: lineage.report)
        if not isinstance(run, Plan):
            summarize(report, run.screen.console)
            run.screen.say("at", "report", report.file(report.page))
            run.screen.say("at", "mlflow", run.tracking.uri)

    return command(work, "From a corpus to a report: every method trained, sampled, scored and compared.")


def _within(run: Runner, spec: Experiment, part: Callable[[Lineage], Any]) -> Any:
    with run.experiment(spec.name, spec):
        return part(Lineage(spec, run))


def command(work: Work, text: str) -> Callable[[], None]:
    """A command line with the options that all jobs share."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.command(help=text)
    def main(
        arguments: Arguments = None,
        preset: Preset = None,
        root: Root = None,
        dry_run: DryRun = False,
        inspect: Inspect = None,
        matrix: Matrix = False,
        tune: Tune = False,
        workers: Workers = 2,
        cpus: Cpus = 1,
        gpus: Gpus = 0,
        concurrent: Concurrent = 1,
        address: Address = None,
        dashboard: Dashboard = None,
    ) -> None:
        with one_line_for_failures():
            if inspect is not None:
                print("\n".join(describe(inspect)))
                return
            if matrix:
                compatibility.show(Console())
                return
            width = {"workers": workers, "cpus": cpus, "gpus": gpus, "concurrent": concurrent}
            placement = validated(Placement, {**width, "address": address, "dashboard": dashboard})
            experiment = None if preset is None else presets.named(preset)
            if tune and experiment is not None:
                experiment = presets.with_search(experiment)
            with runner(root, placement, dry_run) as run:
                work(run, arguments or [], experiment)

    return app


def runner(root: str | None, placement: Placement, dry_run: bool) -> Runner:
    """A runner that tracks in MLflow, or a plan that runs nothing."""
    place, screen = root_or_default(root), Screen()
    if dry_run:
        return Plan(place.uri, screen=screen)
    tracking = Mlflow(local_state(place), screen.warn)
    return Runner(place.uri, placement=placement, tracking=tracking, screen=screen)


@contextmanager
def one_line_for_failures() -> Generator[None]:
    """Turn what is raised within into one line and an exit code."""
    try:
        yield
    except DiscdiffError as error:
        _leave(2, " ".join(str(error).split()))
    except StageError as error:
        _leave(1, f"{error} (traceback in {_traceback()})")
    except KeyboardInterrupt:
        _leave(130, "interrupted; the same command goes on from here.")
    except Exception as error:
        _leave(1, f"{sentence(error)} (traceback in {_traceback()})")


def _leave(code: int, text: str) -> NoReturn:
    print(f"error: {text}", file=sys.stderr, flush=True)
    raise typer.Exit(code)


def _traceback() -> str:
    with tempfile.NamedTemporaryFile("w", prefix="discdiff-", suffix=".txt", delete=False) as file:
        traceback.print_exc(file=file)
    return file.name
