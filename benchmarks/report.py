"""How every benchmark shows its figures: a Markdown table on stdout and a plot in ``benchmarks/results``."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).parent / "results"


class Table:
    """A Markdown table; floats are shown with one decimal."""

    def __init__(self, *columns: str) -> None:
        self._rows = [list(columns)]

    def add(self, *cells: object) -> None:
        self._rows.append([f"{c:.1f}" if isinstance(c, float) else str(c) for c in cells])

    def last(self) -> str:
        """The newest row as one line, for progress."""
        return "  ".join(f"{name}: {cell}" for name, cell in zip(self._rows[0], self._rows[-1], strict=True))

    def __str__(self) -> str:
        lines = ["| " + " | ".join(row) + " |" for row in self._rows]
        return "\n".join([lines[0], "|" + "---|" * len(self._rows[0]), *lines[1:]])


def write_bars(name: str, groups: dict[str, dict[str, float]], title: str) -> None:
    """One group of bars per key of ``groups``, one colour per series; writes ``results/<name>.png``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    RESULTS.mkdir(exist_ok=True)
    series = list(next(iter(groups.values())))
    figure, axes = plt.subplots(figsize=(1.6 * len(groups) + 2, 4))
    for i, label in enumerate(series):
        at = [g + (i - (len(series) - 1) / 2) * 0.8 / len(series) for g in range(len(groups))]
        axes.bar(at, [values[label] for values in groups.values()], 0.8 / len(series), label=label)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_title(title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.png", dpi=120)
    print(f"plot: {RESULTS / name}.png")
