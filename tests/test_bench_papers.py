"""The paper's timing tables on small images. Nothing here looks at times."""

import pytest
import torch

from bench import papers
from fastcodec.kernels import rans
from fastcodec.models import zoo


def test_both_tables(monkeypatch, capsys):
    monkeypatch.setattr(papers, "N", 32)
    monkeypatch.setattr(papers, "REPEATS", 1)
    found = papers.run(torch.device("cpu"), {"Kodak": (64, 64), "Tecnick": (70, 40)})
    for image, latents in (("Kodak", 16), ("Tecnick", 32)):
        assert found["milliseconds"][image].keys() == {row.name for row in papers.ROWS}
        for name, figures in found["milliseconds"][image].items():
            assert figures["latents"] == latents
            assert figures["network"] == pytest.approx(sum(figures[stage] for stage in papers.STAGES))
            assert all(figures[stage] > 0 for stage in (*papers.STAGES, "coder")), name
        assert found["serial_over_checkerboard"][image].keys() == {"mbt2018", "cheng2020-serial"}
    assert found["serial_over_checkerboard"]["Kodak"]["mbt2018"]["paper"] == pytest.approx(44.6, abs=0.05)
    assert "Minnen 2018, serial" in capsys.readouterr().out


def test_the_watch_is_taken_off(monkeypatch):
    monkeypatch.setattr(papers, "N", 32)
    decode, start = rans.Decoder.decode, rans.Decoder.__init__
    model = papers._model("mbt2018-checkerboard", torch.device("cpu"))
    with papers._timed(model, lambda: None):
        assert rans.Decoder.decode is not decode
    assert (rans.Decoder.decode, rans.Decoder.__init__) == (decode, start)
    assert "forward" not in vars(model.g_s)


def test_a_decoder_that_wavers_is_found(monkeypatch):
    monkeypatch.setattr(papers, "N", 32)
    decompress = zoo.CompressionModel.decompress
    noise = iter(range(1, 100))

    def wavering(self, *arguments):
        return decompress(self, *arguments) + next(noise) / 1000

    monkeypatch.setattr(zoo.CompressionModel, "decompress", wavering)
    with pytest.raises(papers.MismatchError):
        papers.measure("bmshj2018-hyperprior", 64, 64, torch.device("cpu"))
