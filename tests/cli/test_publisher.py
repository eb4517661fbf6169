"""What is said to who ends a command while it asks. The whole of it: tests/lab/test_expose.py."""

import pytest

from overlay_cli.publisher import unless_interrupted


def test_who_interrupts_is_told_what_may_be_left(capsys: pytest.CaptureFixture[str]) -> None:
    with unless_interrupted("Something may be left."):
        pass
    assert capsys.readouterr().err == ""
    with pytest.raises(KeyboardInterrupt), unless_interrupted("Something may be left."):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "Something may be left.\n"
    with pytest.raises(ValueError), unless_interrupted("Something may be left."):
        raise ValueError
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError), unless_interrupted("Something may be left.", ValueError):
        raise ValueError
    assert capsys.readouterr().err == "Something may be left.\n"
