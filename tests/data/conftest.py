"""Miniature data sets, made once."""

import pytest

from tests.data import miniatures


@pytest.fixture(scope="session")
def voc(tmp_path_factory):
    """VOC 2012 and SBD."""
    return miniatures.make_voc(tmp_path_factory.mktemp("voc"))


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    """COCO 2014."""
    return miniatures.make_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="session")
def fss(tmp_path_factory):
    """FSS-1000."""
    return miniatures.make_fss(tmp_path_factory.mktemp("fss"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A user's images and masks."""
    return miniatures.make_folder(tmp_path_factory.mktemp("own"))
