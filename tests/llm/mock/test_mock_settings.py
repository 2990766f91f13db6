"""Settings are refused with the mend when they can't be, wherever they are given."""

from __future__ import annotations

import dataclasses
from statistics import fmean, median

import pytest

from tournant.errors import TournantError
from tournant.llm.mock import InvalidMockSettings, MockSettings
from tournant.llm.mock.latency import latency_from


def test_the_defaults_are_a_provider_that_answers_everything_at_once():
    settings = MockSettings()
    assert (settings.rpm, settings.tpm, settings.latency, settings.knee) == (None, None, 0.0, None)
    assert not any(
        getattr(settings, f.name) for f in dataclasses.fields(settings) if f.name.endswith("_rate")
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rpm": 0}, "rpm=0: give a number above 0"),
        ({"rpm": "many"}, "rpm='many': give a number"),
        ({"tpm": -1.0}, "tpm=-1.0"),
        ({"tpm": float("nan")}, "tpm=nan"),
        ({"rpm": float("inf")}, "rpm=inf"),
        ({"rpm": True}, "rpm=True"),
        ({"burst": None}, "burst=None"),
        ({"burst": 0}, "burst=0"),
        ({"headers": "azure"}, "openai, anthropic, none"),
        ({"latency": -0.1}, "latency=-0.1: give figures of 0 or more"),
        ({"latency": "slow"}, "latency='slow' is no latency: give seconds"),
        ({"latency": "normal:1,2"}, "lognormal:MEDIAN,SIGMA"),
        ({"latency": "uniform:1"}, "it is written uniform:LOW,HIGH"),
        ({"latency": "uniform:2,1"}, "the lower bound is above the upper one"),
        ({"latency": "exponential:x"}, "is no latency"),
        ({"latency": "lognormal:1,inf"}, "finite"),
        ({"latency": None}, "latency=None"),
        ({"token_interval": "x"}, "token_interval='x'"),
        ({"knee": 0}, "knee=0: give a whole number from 1 on, or null for none"),
        ({"knee": 1.5}, "knee=1.5"),
        ({"context": 0}, "context=0"),
        ({"error_rate": 1.01}, "1 % is 0.01"),
        ({"error_rate": -0.1}, "error_rate"),
        ({"cut_rate": True}, "cut_rate=True"),
        ({"error_rate": 0.6, "hang_rate": 0.5}, "together they are at most 1"),
        ({"cut_rate": 0.6, "stream_error_rate": 0.5}, "together they are at most 1"),
        ({"api_key": ""}, "api_key"),
        ({"models": "one"}, "models='one': give a list of names"),
        ({"answer_tokens": -1}, "answer_tokens=-1"),
        ({"answer_tokens": 10**9}, "the longest answer"),
        ({"dimensions": 10**9}, "the longest vector"),
        ({"seed": 1.5}, "seed=1.5: give a whole number"),
        ({"port": 70_000}, "port=70000"),
        ({"host": ""}, "host=''"),
        ({"max_body": 0}, "max_body=0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(given, said):
    with pytest.raises(InvalidMockSettings) as caught:
        MockSettings(**given)
    assert said in str(caught.value)
    assert isinstance(caught.value, TournantError)
    assert isinstance(caught.value, ValueError)


def test_a_change_is_validated_like_a_new_one():
    settings = MockSettings(rpm=60)
    assert settings.changed({"rpm": None, "error_rate": 0.5}) == MockSettings(error_rate=0.5)
    with pytest.raises(InvalidMockSettings, match="did you mean 'error_rate'"):
        settings.changed({"eror_rate": 0.5})
    with pytest.raises(InvalidMockSettings, match="port can't change while the provider runs"):
        settings.changed({"port": 1})
    with pytest.raises(InvalidMockSettings, match="knee=0"):
        settings.changed({"knee": 0})


def test_the_key_is_shown_nowhere():
    settings = MockSettings(api_key="canary-key")
    assert "canary" not in repr(settings)
    assert settings.as_dict()["api_key"] is True
    assert MockSettings().as_dict()["api_key"] is False


@pytest.mark.parametrize("value", [0.2, "0.2", " 0.2 "])
def test_a_figure_is_a_constant(value):
    latency = latency_from(value, "latency")
    assert latency.constant
    assert latency.draw(0.01) == latency.draw(0.99) == 0.2


QUANTILES = [(n + 0.5) / 10_000 for n in range(10_000)]


def test_distributions_have_the_figures_that_name_them():
    uniform = [latency_from("uniform:0.1,0.3", "latency").draw(q) for q in QUANTILES]
    assert 0.1 <= min(uniform) < max(uniform) <= 0.3
    assert fmean(uniform) == pytest.approx(0.2, rel=0.01)
    exponential = [latency_from("exponential:0.5", "latency").draw(q) for q in QUANTILES]
    assert fmean(exponential) == pytest.approx(0.5, rel=0.01)
    lognormal = [latency_from("lognormal:0.5,0.4", "latency").draw(q) for q in QUANTILES]
    assert median(lognormal) == pytest.approx(0.5, rel=0.01)
    # One sigma above the median: 84.13 % lie below it.
    assert sorted(lognormal)[8_413] == pytest.approx(0.5 * 2.71828**0.4, rel=0.01)
    assert lognormal == sorted(lognormal)
