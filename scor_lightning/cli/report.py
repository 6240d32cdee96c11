"""``scor-report``: print the table of a comparison and write its report, finished or not."""

from typing import TYPE_CHECKING

from scor_lightning.cli.errors import run_script

if TYPE_CHECKING:
    from scor_lightning.comparison.report import Report


def usage() -> str:
    """Return the help on one screen."""
    return """\
Print the table of a comparison and write its report, finished or not.

usage: scor-report FOLDER [--baseline METHOD] [--measure accuracy] [--margin 0.005]

Writes report.html, results.csv, summary.json, table.md, table.tex and pictures/ into the folder of a scor-compare.
"""


def run(argv: list[str]) -> None:
    """Write the report of a folder of results anew, and print its table."""
    from scor_lightning.comparison.report import write_report
    from scor_lightning.parser import OneLineErrorParser

    parser = OneLineErrorParser(prog="scor-report", description="Report what a folder of results says so far.")
    parser.add_argument("folder", type=str, help="Folder that scor-compare writes.")
    parser.add_argument("--baseline", type=str | None, default=None, help="Method that the others are compared with.")
    parser.add_argument("--measure", type=str | None, default=None, help="What names the best method.")
    parser.add_argument("--margin", type=float | None, default=None, help="Differences up to this count as none.")
    config = parser.parse_args(argv)
    show(write_report(config.folder, config.baseline, config.measure, config.margin))


def show(report: "Report") -> None:
    """Print the table of a comparison, and where its report is."""
    print(f"\n{report.table()}")
    print(
        f"Page:    {report.path / 'report.html'}\nNumbers: {report.path / 'results.csv'}, summary.json, table.md, table.tex"
    )


def main() -> None:
    """Run the command."""
    run_script("report", usage, run)
