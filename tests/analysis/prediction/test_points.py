"""Published tables of step times: read with their complaints, and foretold one batch size and one length out."""

from pathlib import Path

import numpy as np
import pytest

from kvload.analysis.prediction.points import errors, read
from kvload.cli.main import run
from kvload.errors import UsageError

HEAD = "method,stage,batch,length,seconds\n"


def table(path: Path, noise: float = 0.015) -> Path:
    """A table like those that the throughput predictor of arXiv 2503.24000 is fitted from."""
    rng = np.random.default_rng(0)
    lines = [HEAD]
    for method, read_s in (("none", 6e-7), ("int4", 2e-7)):
        for batch in (1, 2, 4, 8, 16):
            for length in (128, 512, 1024, 2048, 4096):
                tokens = batch * length
                prefill = (9e-3 + 4e-3 + 1.1e-4 * tokens + 4e-9 * tokens * length) * np.exp(rng.normal(0, noise))
                decode = (9e-3 + 2e-4 * batch + read_s * tokens) * np.exp(rng.normal(0, noise))
                lines.append(
                    f"{method},prefill,{batch},{length},{prefill}\n{method},decode,{batch},{length},{decode}\n"
                )
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_every_stage_is_foretold_where_it_was_not_measured(tmp_path: Path) -> None:
    for method, points in read(table(tmp_path / "t.csv")).items():
        for found in errors(method, points):
            assert found.points == 25
            assert found.by_batch is not None
            assert found.by_length is not None
            assert found.corner is not None
            assert 1 - found.by_batch.mape > 0.96, found
            assert 1 - found.by_length.mape > 0.96, found
            assert 1 - found.corner.mape > 0.90, found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method,batch\n", "no column 'stage'"),
        (HEAD, "no points"),
        (f"{HEAD}a,prefil,1,1,1\n", ":2: 'prefil' is neither"),
        (f"{HEAD}a,decode,1,1,1\na,decode,1,-5,1\n", ":3: length: '-5'"),
        (f"{HEAD}a,decode,1,nan,1\n", "length: 'nan'"),
        (f"{HEAD}a,decode,1\n", ":2: has not 5 columns"),
        (f"{HEAD}a,decode,1,1,1,9\n", ":2: has not 5 columns"),
        (f"{HEAD},decode,1,1,1\n", ":2: names no method"),
        (f"{HEAD}a,decode,1,1,5ms\n", "seconds: '5ms'"),
        (f"{HEAD}a,decode,1_0,1,1\n", "batch: '1_0'"),
        (f"{HEAD}a,decode,1.5,1,1\n", "no whole number"),
        (f"{HEAD}a,prefill,1e200,1e200,1\n", "up to 1,000,000"),
        (HEAD.replace(",", ";") + "a;decode;1;1;0,05\n", "0.05, not 0,05"),
        (f"method,{HEAD}a,a,decode,1,1,1\n", "two columns 'method'"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read(path)
    assert said in str(caught.value) or said in (caught.value.hint or "")


@pytest.mark.parametrize("parted", [",", ";", "\t", ", "])
def test_a_table_is_read_as_spreadsheets_write_it(tmp_path: Path, parted: str) -> None:
    plain = table(tmp_path / "t.csv")
    other = tmp_path / "exported.csv"
    text = plain.read_text(encoding="utf-8").replace(",", parted).replace("\n", "\r\n")
    other.write_bytes(b"\xef\xbb\xbf" + text.encode())
    for method, points in read(plain).items():
        again = read(other)[method]
        assert again.steps.seconds.tolist() == points.steps.seconds.tolist()
        assert again.batch.tolist() == points.batch.tolist()


def test_a_table_becomes_models_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.json"
    given = ["--points", str(table(tmp_path / "t.csv")), "-o", str(file), "--pool-tokens", "100000"]
    assert run(["predict", "fit", *given]) == 0
    assert "one batch out" in capsys.readouterr().out
    trace = tmp_path / "trace.jsonl"
    rows = [f'{{"id": "{i}", "arrival": {i * 0.5}, "input_length": 300, "output_length": 40}}' for i in range(20)]
    trace.write_text("\n".join(rows), encoding="utf-8")
    assert run(["predict", str(trace), "--model", str(file), "--draws", "3"]) == 0
    assert "int4" in capsys.readouterr().out
    assert run(["predict", "fit", "-o", str(file)]) == 2
