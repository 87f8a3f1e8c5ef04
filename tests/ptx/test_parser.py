"""Text that is no kernel of Triton's is refused by its line, before anything is built of it."""

import pytest

from uino_deploy.ptx.errors import UnsupportedPtx
from uino_deploy.ptx.parser import MOST_REGISTERS, MOST_SHARED, parse

SHARED = ".shared .align 16 .b8 buffer[1024];"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (")", "", "no parameters or no body"),
        ("{", "", "no parameters or no body"),
        (".param .u64 .ptr", ".param .v64 .ptr", "type v64 is not known"),
        (".reg .b16", ".reg .b17", "type b17 is not known"),
        (".b8 buffer", ".b9 buffer", "type b9 is not known"),
        ("%r<80>", f"%r<{MOST_REGISTERS + 1}>", f"more than {MOST_REGISTERS} registers"),
        ("%r<80>", "%r<" + "9" * 5000 + ">", "is not the name of a register"),
        ("buffer[1024]", f"buffer[{MOST_SHARED + 1}]", "more shared memory than any GPU has"),
        ("mov.u32 %r0, %tid.x", "mov.u32 %r0, " + "9" * 5000, "is not supported"),
        ("mov.u32 %r0, %tid.x", "mov.u32 %r0, 010", "operand 010 is not supported"),
        ("[k_param_0]", "[k_param_0+x]", "address k_param_0.x is not supported"),
        ("[k_param_0]", "[k_param_0+" + "9" * 5000 + "]", "is not supported"),
    ],
)
def test_damaged_text_is_refused(assemble, old, new, words):
    text = assemble("", 1, shared=SHARED)
    parse(text)
    assert old in text
    with pytest.raises(UnsupportedPtx, match=words):
        parse(text.replace(old, new))


def test_a_comment_without_an_end_takes_no_longer_than_one_with_it(assemble):
    """Each of these was once searched to the end of the text: hours for a megabyte."""
    with pytest.raises(UnsupportedPtx, match="0 entries"):
        parse("/*" * 500_000)
    assert parse(assemble("", 0) + "/*" * 500_000).name == "k"
