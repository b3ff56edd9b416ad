"""Labels, positions and generators as a user gives them, as one row for each image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from iclevr_diffusion.data.labels import LabelSet, Vocabulary
from iclevr_diffusion.data.negation import NOT, check_signed, encode_all_signed
from iclevr_diffusion.diffusion.pipeline import STREAM, Pipeline
from iclevr_diffusion.models.layout import Layout
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.rng import image_generators, keyed_generator

Labels = str | Sequence[str | Sequence[str]]
Positions = Tensor | Sequence[Any]
Generators = torch.Generator | Sequence[torch.Generator]


def label_sets(labels: Labels, vocabulary: Vocabulary) -> list[LabelSet]:
    """Return the label set of each prompt.

    Raises:
        ValueError: There is no prompt, or one is neither a string nor a list of names.
        UserError: A label is unknown.
    """
    if isinstance(labels, str):
        return [check_signed(labels, vocabulary)]
    advice = "give a string or a list of names for each prompt"
    if not isinstance(labels, Sequence):
        raise ValueError(f"labels is of type {type(labels).__name__}: {advice}")
    if not labels:
        raise ValueError(f"labels is empty: {advice}")
    for one in labels:
        names = one if isinstance(one, Sequence) else [one]
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"labels holds {one!r:.60}: {advice}")
    return [check_signed(one, vocabulary) for one in labels]


def parse_positions(
    pairs: Sequence[Sequence[float]], label_set: LabelSet, vocabulary: Vocabulary
) -> Tensor:
    """Positions (L, 2) from pairs in the order of the label set; 0 for all other labels.

    Raises:
        UserError: There is not one pair for each label, or a number is outside [-1, 1].
    """
    found = len(pairs) if hasattr(pairs, "__len__") else 0
    if found != len(label_set):
        raise UserError(
            f"positions: {len(label_set)} labels need as many pairs [x, y], got {found}"
        )
    result = torch.zeros(len(vocabulary), 2)
    for name, pair in zip(label_set, pairs, strict=True):
        numbers = _numbers(pair)
        if len(numbers) != 2:
            raise UserError(f"positions: {name} needs two numbers, [x, y]; got {pair!r:.60}")
        if not all(-1 <= value <= 1 for value in numbers):
            raise UserError(f"positions: {name} must be in [-1, 1], got {list(pair)}")
        result[vocabulary.index[name.removeprefix(NOT)]] = torch.tensor(numbers)
    return result


def _numbers(pair: Any) -> list[float]:
    try:
        return [float(value) for value in pair]
    except (TypeError, ValueError):
        return []


def snapped(positions: Tensor, prior: Layout | None) -> Tensor:
    """Return the nearest positions, (…, 2), among those of the training images.

    Args:
        positions: x to the right and y down, in [-1, 1].
        prior: The network's prior over positions; None if it takes none.

    Raises:
        UserError: The network takes no positions.
    """
    if prior is None:
        raise UserError("positions: these weights take no positions; leave them out")
    return prior.snap(positions)


def positions_of(
    positions: Positions | None, labels: Labels, sets: Sequence[LabelSet], pipeline: Pipeline
) -> Tensor | None:
    """Return the position of each label, (N, L, D), of N prompts; D is 4 with headings, else 2.

    Args:
        positions: Pairs in the order of the labels, of one prompt or of each; or (N, L, D).
        labels: The prompts as given.
        sets: Their label sets.
        pipeline: The network with its settings.

    Raises:
        UserError: The network takes no positions, or there is not one for each label.
        ValueError: There are not as many lists of positions as prompts, or a tensor has another
            shape.
    """
    if positions is None:
        return None
    if isinstance(positions, Tensor):
        shape = len(sets), len(pipeline.vocabulary)
        if positions.ndim != 3 or positions.shape[:2] != shape or positions.shape[2] not in (2, 4):
            raise ValueError(
                f"positions must be {(*shape, 2)} as a tensor, got {tuple(positions.shape)}; or a"
                " list of [x, y], one per label"
            )
        positions = positions.float()
    else:
        each = [positions] if isinstance(labels, str) else positions
        if len(each) != len(sets):
            raise ValueError(
                f"positions must hold {len(sets)} lists, one per prompt; got {len(each)}"
            )
        parsed = [
            parse_positions(pairs, names, pipeline.vocabulary)
            for pairs, names in zip(each, sets, strict=True)
        ]
        positions = torch.stack(parsed)
    present = encode_all_signed(sets, pipeline.vocabulary).abs()
    return snapped(positions, pipeline.position_prior) * present[..., None]


def generators_of(generator: Generators | None, count: int) -> list[torch.Generator]:
    """Return one generator for each image, on the CPU.

    A new generator of seed s gives those of ``python -m iclevr_diffusion.sample seed=s``, one that
    has been used others.

    Args:
        generator: One for all images, or one for each; None: torch's global one.
        count: Number of images.

    Raises:
        ValueError: A list has another length, or something is no generator.
    """
    if generator is None:
        return image_generators(int(torch.randint(2**63 - 1, ())), range(count), STREAM)
    if isinstance(generator, torch.Generator):
        return image_generators(_seed(generator), range(count), STREAM)
    given = list(generator) if isinstance(generator, Sequence) else [generator]
    if not all(isinstance(one, torch.Generator) for one in given):
        raise ValueError(f"generator must be a torch.Generator, or a list; got {generator!r:.60}")
    if len(given) != count:
        raise ValueError(f"generator must be one, or a list of {count}; got a list of {len(given)}")
    return [keyed_generator(STREAM, _seed(one), 0) for one in generator]


def _seed(generator: torch.Generator) -> int:
    """Return the seed of a new generator, or a random number of a used one; it is used then."""
    seed = generator.initial_seed()
    new = torch.Generator(generator.device).manual_seed(seed)
    is_new = torch.equal(new.get_state(), generator.get_state())
    number = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
    return seed if is_new else int(number)
