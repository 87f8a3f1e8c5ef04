"""The demo: export and verification of the bundled model, and segmentation of unseen classes."""

from uino_deploy.demo.run import run_demo

__all__ = ["run_demo"]
