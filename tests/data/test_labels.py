import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iclevr_diffusion.data.labels import ICLEVR_LABELS, NAMES, NUM_LABELS, LabelSet, Vocabulary
from iclevr_diffusion.utils.errors import UserError

label_sets = st.lists(st.sampled_from(NAMES), min_size=1, max_size=24, unique=True)


def test_the_order_is_that_of_the_course_s_objects_json() -> None:
    assert NAMES[0] == "gray cube"
    assert NAMES[9] == "red sphere"
    assert NAMES[16] == "gray cylinder"
    assert NAMES[23] == "yellow cylinder"
    assert NUM_LABELS == len(set(NAMES)) == 24


@given(label_sets)
def test_decoding_undoes_encoding(names: list[str]) -> None:
    vector = ICLEVR_LABELS.encode(names)
    assert vector.dtype == torch.float32
    assert vector.sum() == len(names)
    assert ICLEVR_LABELS.decode(vector) == tuple(sorted(names, key=NAMES.index))


@given(label_sets, st.data())
def test_parsing_ignores_case_blanks_and_plural(names: list[str], data: st.DataObject) -> None:
    def spoil(name: str) -> str:
        color, shape = name.split()
        blank = st.sampled_from([" ", "  ", "\t"])
        name = f"{data.draw(blank)}{color}{data.draw(blank)}{shape}{data.draw(blank)}"
        name = data.draw(st.sampled_from([name, name.upper(), name.title()]))
        return data.draw(st.sampled_from([name, name.rstrip() + "s"]))

    assert ICLEVR_LABELS.check(",".join(spoil(name) for name in names)) == tuple(names)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Grey Cube", ("gray cube",)),
        ("red cube,", ("red cube",)),
        ("red cube, ,blue sphere", ("red cube", "blue sphere")),
        ("a red cube and a blue sphere", ("red cube", "blue sphere")),
        ("Red Cube, Blue Sphere", ("red cube", "blue sphere")),
        (
            '"red cube", (blue-sphere) and a Gray_Cylinder.',
            ("red cube", "blue sphere", "gray cylinder"),
        ),
        ("red cube & blue sphere", ("red cube", "blue sphere")),
        ("the red cube, a gray cylinder", ("red cube", "gray cylinder")),
        ("red cube\nblue sphere\n", ("red cube", "blue sphere")),
        ("red cube|blue sphere", ("red cube", "blue sphere")),
        ("red cube，“blue sphere”、1x cyan cube", ("red cube", "blue sphere", "cyan cube")),
        ("red cube; one cyan sphere + an yellow cube", ("red cube", "cyan sphere", "yellow cube")),
        (
            "a red cube, a blue sphere, and 1 Grey cylinder",
            ("red cube", "blue sphere", "gray cylinder"),
        ),
    ],
)
def test_other_spellings_are_accepted(text: str, expected: LabelSet) -> None:
    assert ICLEVR_LABELS.check(text) == expected


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("", "no label given"),
        (" , ", "no label given"),
        ("red cub, pink cube", "; unknown label 'pink cube'; the closest are "),
        ("a, b, red cube, c, d, e", "; and 3 more unknown labels"),
        ("red cube without blue sphere", "use guidance.mode=composed and 'not blue sphere'"),
        ("red cube blue sphere", "sphere'; separate labels by commas: red cube, blue sphere"),
        ("a red cube with a blue sphere", "; separate labels by commas: red cube, blue sphere"),
        ("a Red cube a grey ball", "the closest are"),
        ("-red cube", "'-red cube': for an image without it, use guidance.mode=composed"),
        ("red cube, !blue sphere", "'!blue sphere': for an image without it, use"),
        ("0 red cubes", "'0 red cubes': for an image without it, use"),
        ("a pair of red cubes", "'a pair of red cubes' asks for more than one;"),
        (
            "red cube and 3 Grey cubes",
            "'3 Grey cubes' asks for more than one; an image has at most",
        ),
        ("violet box", "unknown label 'violet box'; the closest are purple cube"),
        ("and", "no label given"),
        ("red\ncube\nx", "unknown label"),
        ("x" * 100_000, "unknown label"),
    ],
)
def test_a_bad_label_set_is_refused_in_one_short_line(text: str, phrase: str) -> None:
    with pytest.raises(UserError) as error:
        ICLEVR_LABELS.check(text)
    assert phrase in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_a_name_in_a_list_is_read_as_text_is() -> None:
    assert ICLEVR_LABELS.check(["The Red Cube", "a grey sphere"]) == (
        "red cube",
        "gray sphere",
    )
    assert ICLEVR_LABELS.check(["red cube and blue sphere"]) == ("red cube", "blue sphere")
    with pytest.raises(UserError, match="unknown label ''"):
        ICLEVR_LABELS.check(["red cube", ""])


def test_an_unknown_name_lists_the_three_closest() -> None:
    with pytest.raises(UserError, match=r"closest are (\w+ \w+, ){2}\w+ \w+$"):
        ICLEVR_LABELS.check("purpel cylindre")


@pytest.mark.parametrize(("size", "count"), [(1, 24), (2, 276), (3, 2024)])
def test_every_label_set_of_a_size_is_listed_once(size: int, count: int) -> None:
    sets = ICLEVR_LABELS.all_sets(size)
    assert len(sets) == len(set(sets)) == count
    assert all(len(set(names)) == size for names in sets)


@pytest.mark.parametrize("size", [0, -1, 25])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="size must be in"):
        ICLEVR_LABELS.all_sets(size)


def test_encode_all_stacks_the_vectors() -> None:
    vectors = ICLEVR_LABELS.encode_all([("red cube",), ("blue sphere", "gray cube")])
    assert vectors.shape == (2, 24)
    assert ICLEVR_LABELS.decode(vectors[1]) == ("gray cube", "blue sphere")


def test_a_vector_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="expected shape"):
        ICLEVR_LABELS.decode(torch.zeros(1, 24))


FRUIT = Vocabulary(["Red apple", "pear", "glass"], spellings={"peer": "pear"})


def test_a_vocabulary_has_any_labels():
    assert len(FRUIT) == 3
    assert FRUIT.check("a red  APPLE and PEERS; glass") == FRUIT.names
    assert FRUIT.encode(["glass", "pears"]).tolist() == [0, 1, 1]
    assert FRUIT.decode(torch.tensor([0.9, 0.0, 1.0])) == ("Red apple", "glass")
    assert FRUIT.all_sets(2) == [("Red apple", "pear"), ("Red apple", "glass"), ("pear", "glass")]
    with pytest.raises(UserError, match="unknown label 'red cube'; the closest are"):
        FRUIT.check("red cube")
    with pytest.raises(UserError, match="write for example 'Red apple, pear'"):
        FRUIT.check("")


def test_vocabularies_are_equal_where_their_names_are():
    assert Vocabulary(NAMES) == ICLEVR_LABELS != FRUIT
    assert hash(Vocabulary(NAMES)) == hash(ICLEVR_LABELS)


@pytest.mark.parametrize(
    "names",
    [
        [],
        [""],
        ["a", "a"],
        ["cat", "Cats "],
        ["salt, pepper"],
        ["salt and pepper"],
        [3],
        ["a\x1b[2J"],
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(names):
    with pytest.raises(ValueError, match="label"):
        Vocabulary(names)
