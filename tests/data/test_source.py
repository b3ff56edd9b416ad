from pathlib import Path

from iclevr_diffusion.data.iclevr.dataset import ICLEVR
from iclevr_diffusion.data.source import choose_source
from iclevr_diffusion.data.synthetic.dataset import Synthetic


def test_a_root_means_the_course_s_frames(tmp_path: Path) -> None:
    source = choose_source(str(tmp_path), 32, tmp_path / "cache", sequences=5, seed=7)
    assert isinstance(source, ICLEVR)
    assert (source.root, source.image_size, source.cache) == (tmp_path, 32, tmp_path / "cache")


def test_no_root_means_synthetic_frames(tmp_path: Path) -> None:
    source = choose_source(None, 32, tmp_path / "cache", sequences=5, seed=7)
    assert isinstance(source, Synthetic)
    assert (source.sequence_count, source.seed, source.image_size) == (5, 7, 32)
