import pandas as pd
import pytest

from voxplain.diagnosis import SEGMENTED, Diagnosis


def said(place: str, mass: float, share: float = 0.02, compared_with: str = SEGMENTED) -> str:
    agreement = pd.DataFrame([{"map": "features.denseblock1", "mass_inside": mass, "peak_mm": 3.2, "place": place}])
    return Diagnosis({"a": 1.0}, {}, {}, agreement, share, {}, {"compared_with": compared_with}).sentence


@pytest.mark.parametrize(
    ("place", "words"), [("in", "lies in the"), ("beside", "lies beside the"), ("away", "lies away from the")]
)
def test_the_sentence_says_where_the_evidence_lies(place: str, words: str) -> None:
    assert said(place, 0.81) == (
        f"The classifier's evidence {words} segmented tumour: 81% of its map at features.denseblock1 lie inside, which "
        "takes 2% of the head, and the map's peak is 3 mm from it."
    )
    assert "tumour that was given" in said(place, 0.81, compared_with="an expert mask")


def test_a_peak_inside_is_not_all_of_the_map() -> None:
    assert said("in", 0.05).endswith("; most of the map lies elsewhere.")
    assert not said("away", 0.05).endswith("elsewhere.")
    assert not said("in", 0.5).endswith("elsewhere.")


def test_the_sentence_says_what_cannot_be_said() -> None:
    assert "finds no tumour" in said("", 0.0, share=0.0)
    assert "holds no tumour" in said("", 0.0, share=0.0, compared_with="an expert mask")
    assert "the same everywhere" in said("", 0.02)
