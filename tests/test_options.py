"""One table of numbers for Python and the command line."""

import math

import pytest

from minitransformer.options import RANGES, check_numbers, number

WRONG = {
    "lr": (0, 0.0, -1e-3, math.nan, math.inf, "0.1", True),
    "lr_factors": ([1.0, 0.0], [-1.0]),
    "epochs": (0, -1, math.inf, math.nan),
    "warmup": (-0.1, -1, 1.0, 1.5, 2.5, math.nan, math.inf),
    "weight_decay": (-0.1, 1e6, math.nan),
    "clip": (-1.0, math.nan),
    "cache_mib": (-1, math.nan),
    "dropout": (-0.1, 1.0, 1.5),
    "batch_size": (0, -1, 8.0, True),
    "steps": (0, 1.5),
    "validate_every": (0,),
    "checkpoint_every": (0,),
    "seed": (-3, 2**32, 1.5),
    "seeds": ([0, -1],),
    "max_length": (2,),
    "length": (1, 0, -5),
    "labels": ([16, 1],),
    "seconds": (0, -1.0),
}
RIGHT = {
    "lr": (1e-3, 1), "epochs": (1, 1.5, 0.1), "warmup": (0, 0.1, 0.999, 1, 100, 100.0),
    "weight_decay": (0, 0.1), "clip": (0, 0.0, 1, math.inf), "cache_mib": (0, 0.5), "steps": (1, None),
    "seed": (0, 2**32 - 1), "seeds": ([0, 1, 2], ()), "precision": ("auto",), "dropout": (0, 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_number_that_an_option_cannot_be_is_refused_by_name(name):
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=rf"^{name} must be .*, got "):
            check_numbers(**{name: value})
        with pytest.raises(ValueError, match=rf"^--{name} must be"):
            check_numbers("--{}", **{name: value})


@pytest.mark.parametrize("name", RIGHT)
def test_the_others_are_accepted(name):
    for value in RIGHT[name]:
        check_numbers(**{name: value})
    assert name in RANGES or name == "precision"


def test_whole_numbers_of_the_command_line_stay_whole():
    assert isinstance(number("1"), int) and isinstance(number("1.0"), float)
    assert number("1e-3") == 1e-3
