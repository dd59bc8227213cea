"""What charts are drawn from: named series of numbers with their standard errors."""

from discdiff.types import Value


class Mark(Value, frozen=True):
    """A point of a series with its standard error, if it has one."""

    x: float
    y: float
    se: float | None = None


class Series(Value, frozen=True):
    """A named line of a chart."""

    name: str
    marks: tuple[Mark, ...]
    color: int = 0
    """Whose line it is: lines of one number look alike in all charts, in color and in black and white."""
    variant: str = ""
    """Which of several lines of one name, such as a batch size: told apart by the filling of its marks."""
