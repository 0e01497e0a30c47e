"""The command as a whole: what is wrong is said once, in plain letters, with the nearest command's name."""


def test_a_misspelt_command_is_answered_with_the_nearest(command_line) -> None:
    code, out, err = command_line("solv")
    assert (code, out) == (2, "")
    assert "there is no command 'solv'; did you mean solve?" in err
    assert "did you mean" not in command_line("nonsense")[2]


def test_an_error_cannot_steer_the_terminal(command_line, tmp_path) -> None:
    code, _, err = command_line("inspect", tmp_path / "x\x1b[2J")
    assert code == 1
    assert "x\N{REPLACEMENT CHARACTER}[2J cannot be read" in err
