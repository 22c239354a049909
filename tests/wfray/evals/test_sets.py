"""Sets that are built here from what packages ship."""

from wfray.evals.sets import from_other_articles, in_turns, qnli_pairs

PARAGRAPH = {
    "context": "The Rhine rises in the Alps. It ends in the North Sea near Rotterdam. Barges carry coal on it.",
    "qas": [
        {"question": "Where does the Rhine end? ", "answers": [{"answer_start": 40, "text": "North Sea"}]},
        {"question": "Where does the river rise?", "answers": [{"answer_start": 19, "text": "the Alps"}]},
        {"question": "What lies across?", "answers": [{"answer_start": 19, "text": "the Alps. It ends"}]},
    ],
}


def test_a_question_meets_the_sentence_with_its_answer_and_another_that_shares_words() -> None:
    pairs = qnli_pairs(PARAGRAPH)
    question = "Where does the Rhine end?"
    assert pairs[0] == (
        {"question": question, "sentence": "It ends in the North Sea near Rotterdam.", "answer": "yes"},
        {"question": question, "sentence": "The Rhine rises in the Alps.", "answer": "no"},
    )
    assert len(pairs) == 2, "the answer of the third lies across two sentences"
    assert [row["answer"] for row in in_turns(pairs)] == ["yes", "no"]


def test_a_passage_of_one_sentence_gives_nothing() -> None:
    assert qnli_pairs({"context": "One sentence. ", "qas": [{"question": "?", "answers": [{"answer_start": 0, "text": "One"}]}]}) == []


def test_wrong_sentences_can_come_from_other_articles() -> None:
    other = {
        "context": "Tea grows in Assam. It is picked by hand.",
        "qas": [
            {"question": "Where does tea grow?", "answers": [{"answer_start": 13, "text": "Assam"}]},
            {"question": "How is it picked?", "answers": [{"answer_start": 33, "text": "by hand"}]},
        ],
    }
    rows = from_other_articles([qnli_pairs(PARAGRAPH), qnli_pairs(other)])
    assert [row["answer"] for row in rows] == ["yes", "no"] * 2
    assert rows[0]["sentence"] == "It ends in the North Sea near Rotterdam." and rows[2]["sentence"] == "Tea grows in Assam."
    assert rows[1]["sentence"] in ("Tea grows in Assam.", "It is picked by hand."), "of the other article"
    assert rows[3]["sentence"] in ("It ends in the North Sea near Rotterdam.", "The Rhine rises in the Alps.")
