"""The demo: export the bundled model, verify it, segment classes it never saw with the bundle."""

from uino_deploy.demo.run import run_demo

__all__ = ["run_demo"]
