"""The table laid out like the paper's."""

from uino_deploy.evaluation.episodes import Evaluation
from uino_deploy.evaluation.published import PUBLISHED, paper_table


def test_a_complete_benchmark_has_its_mean_beside_the_papers():
    ours = {"x.uino": {fold: Evaluation(60.0 + fold, 75.0, 1) for fold in range(4)}}
    columns, rows = paper_table("coco", 1, ours)
    assert columns == ["COCO-20i, 1-shot", *(f"fold {i}" for i in range(4)), "mean", "FB-IoU"]
    assert rows == [
        ["UINO-FSS (paper)", "62.2", "66.0", "65.5", "64.4", "64.5", "-"],
        ["x.uino", "60.0", "61.0", "62.0", "63.0", "61.5", "75.0"],
    ]


def test_one_fold_alone_has_no_mean():
    _, rows = paper_table("pascal", 1, {"x": {2: Evaluation(70.0, 80.0, 1)}})
    assert rows[0][-2] == "80.6"
    assert rows[1] == ["x", "-", "-", "70.0", "-", "-", "80.0"]


def test_the_paper_is_left_out_where_it_has_no_figure():
    columns, rows = paper_table("pascal", 5, {"x": {0: Evaluation(70.0, 80.0, 1)}})
    assert columns[0] == "PASCAL-5i, 5-shot"
    assert [row[0] for row in rows] == ["x"]
    columns, rows = paper_table("folder", 1, {"x": {3: Evaluation(70.0, 80.0, 1)}})
    assert columns == ["folder, 1-shot", "mean", "FB-IoU"]
    assert rows == [["x", "70.0", "80.0"]]


def test_the_published_folds_average_to_the_published_mean():
    for published in PUBLISHED.values():
        known = [fold for fold in published.folds if fold is not None]
        if len(known) == len(published.folds):
            assert abs(sum(known) / len(known) - published.mean) < 0.06
