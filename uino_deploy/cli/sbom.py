"""`uino-deploy sbom`: list the installed software and its licences, as CycloneDX if asked."""

from __future__ import annotations

from pathlib import Path

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, force_option, output_options


@click.command()
@click.option("-o", "--output", "path", type=FILE, help="Write the CycloneDX document here.")
@force_option
@output_options
def sbom(path: Path | None, force: bool, output: Output) -> None:
    """List the installed software that this program can use: its bill of materials.

    Names, versions and licences come from the packages' metadata. --json and -o give CycloneDX 1.6.
    A bundle has such a list of what made it, sbom.cdx.json.

    \b
    Examples:
      uino-deploy sbom
      uino-deploy sbom -o build/uino-deploy.cdx.json
    """
    from uino_deploy.sbom import bill_of_materials, licence_of, write_bill

    bill = bill_of_materials()
    if path is not None:
        write_bill(bill, path, force)
    parts = [bill["metadata"]["component"], *bill["components"]]
    if path is not None:
        output.text(f"{len(parts)} packages, {path}")
    else:
        rows = [[each["name"], each["version"], licence_of(each)] for each in parts]
        output.table(["package", "version", "licence"], rows)
    output.document(bill)
