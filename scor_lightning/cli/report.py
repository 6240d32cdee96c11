"""``scor-report``: print the table of a comparison and write its report, whether it is finished or not."""

from pathlib import Path
from typing import TYPE_CHECKING

from scor_lightning.cli.errors import run_script

if TYPE_CHECKING:
    from scor_lightning.comparison.report import Report


def usage() -> str:
    """Return the help on one screen."""
    return """\
Print the table of a comparison and write its report, finished or not; or rank the methods over several data sets.

usage: scor-report FOLDER [--baseline METHOD] [--measure accuracy] [--margin 0.005]

       scor-report FOLDER FOLDER ... [--measure accuracy] [--output runs/ranking]

One folder: writes report.html, results.csv, summary.json, table.md, table.tex and pictures/ into the folder of a scor-compare.
Several folders, of the same methods: mean ranks; from six on with Friedman's test, Wilcoxon's tests and a
critical-difference diagram, in ranking.html, ranking.md, ranking.tex and ranking.json of the output folder.
"""


def run(argv: list[str]) -> None:
    """Write the report of a folder of results again, and print its table."""
    from scor_lightning.comparison.report import write_report
    from scor_lightning.comparison.side_by_side import SideBySide
    from scor_lightning.parser import OneLineErrorParser

    parser = OneLineErrorParser(prog="scor-report", description="Report the results so far of one or several folders.")
    parser.add_argument("folders", type=str, nargs="+", help="Result folders of scor-compare.")
    parser.add_argument("--baseline", type=str | None, default=None, help="Method that the others are compared with.")
    parser.add_argument("--measure", type=str | None, default=None, help="The measure of the best method.")
    parser.add_argument("--margin", type=float | None, default=None, help="Differences up to this count as none.")
    parser.add_argument("--output", type=str | None, default=None, help="Folder for the ranking of several folders.")
    config = parser.parse_args(argv)
    if len(config.folders) > 1:
        for name in ("baseline", "margin"):
            if getattr(config, name) is not None:
                raise ValueError(f"Expected no `--{name}` with several folders, which are ranked")
        output = Path(config.output or "runs/ranking")
        ranking = SideBySide(config.folders, config.measure)
        ranking.write(output)
        print(f"\n{ranking.table()}\nPage:    {output / 'ranking.html'}")
        print(f"Numbers: {output / 'ranking.json'}, ranking.md, ranking.tex")
        return
    if config.output is not None:
        raise ValueError("Expected several folders for `--output`; the report of one is written into it")
    show(write_report(config.folders[0], config.baseline, config.measure, config.margin))


def show(report: "Report") -> None:
    """Print the table of a comparison, and where its report is."""
    print(f"\n{report.table()}")
    print(
        f"Page:    {report.path / 'report.html'}\nNumbers: {report.path / 'results.csv'}, summary.json, table.md, table.tex"
    )


def main() -> None:
    """Run the command."""
    run_script("report", usage, run)
