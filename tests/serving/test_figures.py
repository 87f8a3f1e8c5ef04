"""The figures on the page are those of the committed run, and nothing in that run was wrong."""

from tests.serving.figures import PAGE, report, section
from uino_deploy.markdown import renew


def test_the_pages_figures_are_those_of_the_committed_run():
    """Update the page with: python -m tests.serving.figures."""
    page = PAGE.read_text("utf-8")
    assert renew(page, "measured", section(report())) == page


def test_nothing_was_lost_or_wrong_in_the_committed_run():
    found = report()
    assert found["failures"] == []
    assert found["killed_workers"]["kills"] >= 5
    assert found["overload"]["refused"] > 0
