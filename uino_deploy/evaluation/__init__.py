"""The accuracy of checkpoints and bundles: mIoU and FB-IoU on the episodes of a data set.

Example:
    from uino_deploy.evaluation import evaluate

    report = evaluate("demo.uino", "demo", episodes=200, against="tiny.safetensors")
    print(report.document["miou"], report.document["against"]["difference"])
"""

from uino_deploy.evaluation.evaluator import evaluate
from uino_deploy.evaluation.report import Report

__all__ = ["Report", "evaluate"]
