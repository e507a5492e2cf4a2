"""The revision is read off a checkpoint, or refused."""

from pathlib import Path

import pytest

from baleen.protocol.errors import RevisionError
from baleen.protocol.revision import detect_revision

PREVIEW = 'dsml_token = "｜DSML｜"\nREASONING_EFFORT_MAX = "Absolute maximum"\n'
R0731 = PREVIEW + 'DEFAULT_REASONING_EFFORT = "low"\nraise SystemExit("executed")\n'
V41 = PREVIEW + "system_token = '<｜System｜>'\n"


@pytest.mark.parametrize(
    ("source", "revision"), [(PREVIEW, "preview"), (R0731, "0731"), (V41, "v4.1")]
)
def test_the_encoder_file_tells_the_revision_without_being_run(
    source: str, revision: str, tmp_path: Path
) -> None:
    encoder = tmp_path / "encoding" / "encoding_dsv4.py"
    encoder.parent.mkdir()
    encoder.write_text(source, "utf-8")
    assert detect_revision(tmp_path) == revision
    assert detect_revision(str(encoder)) == revision


def test_a_folder_that_does_not_tell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RevisionError, match="encoding_dsv4"):
        detect_revision(tmp_path)
    other = tmp_path / "encoder.py"
    other.write_text("print('hello')", "utf-8")
    with pytest.raises(RevisionError, match="does not look like"):
        detect_revision(other)
