"""A preset sets what is not given; what is given stands."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from vexpress_trt import cli
from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.presets import PRESETS, Preset
from vexpress_trt.runtime.request import GenerationRequest


def _request(**given) -> GenerationRequest:
    return GenerationRequest("portrait.jpg", "speech.wav", **given)


def _settings(request: GenerationRequest) -> Preset:
    return Preset(**{spec.name: getattr(request, spec.name) for spec in fields(Preset)})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_valid_request_with_its_values(name: str) -> None:
    request = _request(preset=name)
    request.validate()
    assert _settings(request) == PRESETS[name]


def test_without_a_preset_the_originals_settings_are_taken() -> None:
    assert _settings(_request()) == PRESETS["exact"] == Preset()


def test_what_is_given_overrides_the_preset_even_where_it_is_the_originals_value() -> None:
    request = _request(preset="fast", num_inference_steps=25, guidance_interval="0,1")
    assert (request.num_inference_steps, request.guidance_interval) == (25, "0,1")
    assert request.solver == PRESETS["fast"].solver


def test_fewer_calls_from_preset_to_preset() -> None:
    def halves(name: str) -> int:
        request = _request(preset=name)
        return sum(1 + request.guided(step) for step in range(request.num_inference_steps))

    assert halves("exact") > halves("fast") > halves("realtime")


def test_an_unknown_preset_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(UserError, match="--preset slow: choose one of exact, fast, realtime"):
        _request(preset="slow").validate()


def test_a_preset_that_guides_some_steps_is_not_the_originals_arithmetic() -> None:
    with pytest.raises(UserError, match="--compat upstream"):
        _request(preset="realtime", compat="upstream").validate()


def test_the_command_line_passes_preset_and_overrides_on() -> None:
    flags = ["--preset", "fast", "--num-inference-steps", "6", "--bundle", "b"]
    args = cli._parser().parse_args(cli._with_underscores(["generate", *flags]))
    request = GenerationRequest(**{spec.name: getattr(args, spec.name) for spec in fields(GenerationRequest)})
    assert _settings(request) == replace(PRESETS["fast"], num_inference_steps=6)
    assert request.bundle == Path("b")
