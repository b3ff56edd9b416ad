"""Suggestions for misspelled names."""

import difflib
from collections.abc import Iterable

from iclevr_diffusion.utils.text import any_of

MOST_SHOWN = 3
CLOSE, VERY_CLOSE = 0.65, 0.8  # difflib's ratios, 0..1
MARGIN = 0.1  # maximum difference to the ratio of the closest name
SHORTEST = 3  # minimum length of a prefix that counts
LONGEST = 60  # characters that are compared: difflib takes quadratic time
SYNONYMS = {  # names in other programs and papers → names here
    "batch": "batch_size",
    "beta_schedule": "schedule",
    "bs": "batch_size",
    "cfg": "scale",
    "cfg_scale": "scale",
    "checkpoint": "weights",
    "ckpt": "weights",
    "ckpt_path": "weights",
    "cosine": "squaredcos_cap_v2",
    "dpm": "dpm_solver",
    "ema_decay": "decay",
    "eps": "epsilon",
    "epochs": "max_epochs",
    "gpus": "devices",
    "guidance_scale": "scale",
    "learning_rate": "lr",
    "model": "net",
    "noise": "epsilon",
    "num_epochs": "max_epochs",
    "num_images": "n",
    "num_inference_steps": "steps",
    "num_samples": "n",
    "num_train_timesteps": "timesteps",
    "output": "out",
    "prompt": "labels",
    "sampling_steps": "steps",
    "v": "v_prediction",
    "wd": "weight_decay",
    "x0": "sample",
    "x_0": "sample",
}


def closest(name: str, names: Iterable[str]) -> list[str]:
    """Return up to three of ``names`` that ``name`` may stand for, the likeliest first.

    For a name with dots, such as ``trainer.max_epochs``, the last part alone may be meant, too.
    """
    known = list(dict.fromkeys(names))
    wanted = _by_its_name_here(name.strip().lower()[:LONGEST], known)
    ratios = {k: _ratio(wanted, k.lower()) for k in known}
    best = max(ratios.values(), default=0.0)
    found = [k for k in known if ratios[k] >= max(CLOSE, best - MARGIN)]
    return sorted(found, key=lambda k: -ratios[k])[:MOST_SHOWN]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ``; did you mean …?`` with the closest names, or a full stop if none is close."""
    found = closest(name, names)
    return f"; did you mean {any_of(found)}?" if found else "."


def _by_its_name_here(name: str, known: Iterable[str]) -> str:
    """Translate the last part of ``name`` if it is a synonym of one in ``known``."""
    group, dot, last = name.rpartition(".")
    ends = {k.rpartition(".")[2] for k in known}
    synonyms = {
        synonym: here for synonym, here in SYNONYMS.items() if here in ends and synonym not in ends
    }
    alike = difflib.get_close_matches(last, synonyms, n=1, cutoff=VERY_CLOSE)
    return f"{group}{dot}{synonyms[alike[0]]}" if alike and last not in ends else name


def _ratio(wanted: str, name: str) -> float:
    """Similarity of two names, 0..1: as a whole, by their last part, or by a common prefix."""
    group, _, last = wanted.rpartition(".")
    end = name.rpartition(".")[2]
    whole = difflib.SequenceMatcher(None, wanted, name).ratio()
    if last == end:
        return max(whole, 0.9 if group else 0.95)
    if len(wanted) >= SHORTEST and end.startswith(wanted):
        return max(whole, VERY_CLOSE)
    by_end = difflib.SequenceMatcher(None, last, end).ratio()
    # A common group alone does not make two settings similar.
    return min(whole, by_end + 0.1) if group else max(whole, 0.95 * by_end)
