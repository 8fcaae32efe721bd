"""The verb ``adapt``; what it does with a voice is tested with AdaSpeech."""

import pytest

from vitalk.cli import main


def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["vitalk", "adapt", "--voice", str(tmp_path), "--from", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    told = f"there is no trained model at {tmp_path}/model.safetensors; train first, or name the folder that"
    assert capsys.readouterr().err == f"vitalk: {told} vitalk train wrote\n"
