"""The accuracy of checkpoints and bundles: mIoU and FB-IoU on the episodes of a data set."""

from uino_deploy.evaluation.evaluator import evaluate
from uino_deploy.evaluation.report import Report

__all__ = ["Report", "evaluate"]
