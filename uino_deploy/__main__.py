"""`python -m uino_deploy` is the `uino-deploy` command."""

from uino_deploy.cli import main

if __name__ == "__main__":
    main()
