"""Searching by words in any script, and what is told of texts that could not be read, by hand and by the commands."""

import json
from pathlib import Path

import numpy as np
import pytest

from membuilder import build as build_command
from membuilder import eval as eval_command
from membuilder.bank.ranking import SearchMethod, bm25_scores, fused, reciprocal_ranks, search_terms
from membuilder.datasets.load import load
from membuilder.embedding.local import Embedder
from membuilder.evaluation.systems import Retriever, Unit
from membuilder.memory import Memory
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from tests.fakes import HashEmbedder
from trainer.data.corpus import Corpus, expert_builds, warn_of_lost_text

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
CUT, UNREAD, EMPTY = "texts longer than", "the rules read English only", "nothing was stored of"
SCRIPTS = {
    # what is told, what else is said, what is asked about the first
    "chinese": ("我领养了一只橘猫，名字叫米索。", "今天天气真不错。", "橘猫叫什么名字？"),
    "japanese": ("私はラーメンが大好きです。", "今日はいい天気ですね。", "ラーメンは好きですか？"),
    "thai": ("ฉันรับแมวมาเลี้ยง", "วันนี้อากาศดี", "ใครเลี้ยงแมว"),
    "korean": ("저는 고양이를 입양했어요.", "오늘 날씨가 좋네요.", "고양이는 이름이 뭐예요?"),
    "arabic": ("انتقلت إلى بيروت الأسبوع الماضي.", "الطقس جميل اليوم.", "من انتقل إلى بيروت؟"),
    "hindi": ("मैंने एक बिल्ली गोद ली।", "आज मौसम अच्छा है।", "बिल्ली का नाम क्या?"),
    "emoji": ("I adopted Miśo 🐱‍👤 ❤️‍🔥 yesterday.", "So nice 🦊 ❤️‍🔥!", "Who is Miśo 🐱‍👤?"),
}


def test_english_terms_are_the_words_bm25s_itself_finds():
    import bm25s

    said = "I've moved to Leeds in May_2023: a 2nd job, nurse; café #7 x"
    (theirs,) = bm25s.tokenize([said], stopwords=None, show_progress=False, return_ids=False)
    assert search_terms(said) == theirs == "ve moved to leeds in may_2023 2nd job nurse café".split()


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("我有iPhone，猫。", ["我有", "iphone", "猫"]),
        ("東京へ行く", ["東京", "京へ", "へ行", "行く"]),
        ("ｺｰﾋｰ Ｔｏｋｙｏ", ["コー", "ーヒ", "ヒー", "tokyo"]),  # other widths are the same characters
        ("แมวดำ", ["แม", "มว", "วด", "ดํ", "ํา"]),
        ("고양이", ["고양", "양이"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs end no word
        ("🐱‍👤 ❤️‍🔥", []),  # nor are those of emoji one
    ],
)
def test_terms_of_other_scripts(text, terms):
    assert search_terms(text) == terms


def test_bm25_by_hand():
    # Lucene's idf of a word in one of two texts: ln(1 + 1.5 / 1.5); lengths 2 and 4, mean 3, k1 1.5, b 0.75
    found = bm25_scores(["red boat", "green boat green tent"], ["tent", "unknown", "boat"])
    tent = np.log(2) * 1 / (1 + 1.5 * (0.25 + 0.75 * 4 / 3))
    assert found[0] == pytest.approx([0, tent], rel=1e-5)
    assert found[1].tolist() == [0, 0] and (found[2] > 0).all()


def test_bm25_of_texts_without_a_word():
    assert bm25_scores(["!", "?"], ["boat"]).tolist() == [[0, 0]]


@pytest.mark.parametrize("script", SCRIPTS)
def test_bm25_tells_texts_of_every_script_apart(script):
    told, other, question = SCRIPTS[script]
    ((right, wrong),) = bm25_scores([told, other], [question])
    assert right > wrong


def test_equal_scores_share_a_rank():
    found = reciprocal_ranks(np.array([[0.2, 0.9, 0.2, 0.1]]))
    assert found == pytest.approx(np.array([[1 / 62, 1 / 61, 1 / 62, 1 / 64]]))


def test_what_shares_no_word_has_no_rank_in_the_fusion():
    found = fused(np.array([[0.1, 0.9, 0.5]]), np.array([[0.0, 0.0, 2.0]]))
    assert found == pytest.approx(np.array([[1 / 63, 1 / 61, 1 / 62 + 1 / 61]]))


# through the commands


def dialogue_of(texts: tuple[str, str], question: str, name: str = "d1") -> dict:
    said = [{"speaker": "Zoë 🦊", "text": texts[0], "id": "t1"}, {"speaker": "小红", "text": texts[1]}]
    asked = {"question": question, "answer": "?", "category": "x", "evidence": ["t1"]}
    # the evidence stands last, so that no place in the file earns it
    sessions = [{"timestamp": f"2024-03-{15 + day}T09:30", "turns": [said[1]]} for day in range(6)]
    sessions.append({"timestamp": "2024-03-29T09:30", "turns": said[:1]})
    return {"id": name, "speakers": ["Zoë 🦊", "小红"], "sessions": sessions, "questions": [asked]}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Return a function that writes dialogues to a file; embeddings are cached in the test's own folder."""
    monkeypatch.setenv("MEMBUILDER_CACHE", str(tmp_path / "cache"))

    def write(*dialogues: dict) -> str:
        lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in dialogues]
        (tmp_path / "mine.jsonl").write_text("".join(lines), encoding="utf-8")
        return str(tmp_path / "mine.jsonl")

    return write


def evaluate(path: str, out: Path, *systems: str) -> dict:
    named = [part for name in systems for part in ("--system", name)]
    fixed = ["--dataset", "custom", "--dataset-path", path, "--output-dir", str(out)]
    assert eval_command.main([*fixed, *named]) == 0
    return json.loads((out / "results.json").read_text(encoding="utf-8"))["systems"]


def test_every_script_goes_through_an_evaluation(written, tmp_path):
    path = written(*(dialogue_of((told, other), asked, name) for name, (told, other, asked) in SCRIPTS.items()))
    systems = ("rag-turn", "rag-turn-bm25", "rag-turn-hybrid", "rag-session-bm25")
    found = evaluate(path, tmp_path / "out", *systems)
    assert list(found) == list(systems)
    assert found["rag-turn-bm25"]["evidence_recall"]["5"] == found["rag-session-bm25"]["evidence_recall"]["5"] == 1.0
    assert found["rag-turn-hybrid"]["evidence_recall"]["10"] == 1.0
    assert "橘猫" in (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("unit", Unit)
def test_what_shares_no_word_is_not_returned_and_does_not_move_the_fusion(written, unit):
    (dialogue,) = load(written(dialogue_of(("My puppy chewed the couch.", "Budget figures."), "Any pets around?")))

    def ranked(method: SearchMethod) -> list[tuple[str, ...]]:
        (found,) = Retriever(unit=unit, method=method, embedder=HashEmbedder())(dialogue, 20)
        return [item.source_turns for item in found.items]

    assert ranked(SearchMethod.BM25) == []
    assert ranked(SearchMethod.HYBRID) == ranked(SearchMethod.DENSE) and len(ranked(SearchMethod.DENSE)) == 7


@pytest.mark.skipif(not CASES.is_dir(), reason="the folder of shared cases is not here")
def test_the_fusion_finds_what_dense_search_alone_finds(written, tmp_path):
    found = evaluate(str(CASES / "rrf_no_shared_word.jsonl"), tmp_path / "out", "rag-turn", "rag-turn-hybrid")
    assert [found[name]["evidence_recall"]["5"] for name in found] == [1.0, 1.0]


def messages(caplog, start: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if start in record.getMessage()]


def test_turns_the_rules_cannot_read_and_an_empty_memory_are_told_once(written, tmp_path, caplog):
    english = ("I adopted a cat called Miso in May 2023.", "I moved to Leeds last week for my new job as a nurse.")
    chinese = SCRIPTS["chinese"]
    path = written(*(dialogue_of(chinese[:2], "?", name) for name in "ab"), dialogue_of(english, "?", "c"))
    evaluate(path, tmp_path / "out", "rules", "rag-turn-bm25")
    assert [each.split(": ")[1].split(",")[0] for each in messages(caplog, UNREAD)] == [
        "14 of 21 turns are in another script"
    ]
    assert messages(caplog, EMPTY) == ["rules: nothing was stored of 2 of 3 dialogues, such as a"]
    caplog.clear()
    command = ["--dataset", "custom", "--dataset-path", path, "--model", "rules", "--out", str(tmp_path / "stores")]
    assert build_command.main(command) == 0
    assert len(messages(caplog, UNREAD)) == 1 and "14 of 21" in messages(caplog, UNREAD)[0]
    assert messages(caplog, EMPTY) == ["builder: nothing was stored of 2 of 3 dialogues, such as a"]
    caplog.clear()
    assert build_command.main([*command[:-1], str(tmp_path / "one.db"), "--conv-id", "c"]) == 0
    assert caplog.records == []


def test_texts_cut_at_the_embedders_limit_are_told_once_also_from_the_cache(written, tmp_path, caplog):
    path = written(dialogue_of(("I adopted a cat called Miso.", "lorem ipsum dolor " * 200), "What is the cat called?"))
    for run in ("first", "second"):
        evaluate(path, tmp_path / run, "rag-turn", "rag-turn-hybrid")
        told = "texts longer than the embedding model reads: 6; behind its limit only index.pieces=true searches"
        assert messages(caplog, CUT) == [told]  # dates differ, so there are six of them
        caplog.clear()
    evaluate(written(dialogue_of(("I adopted a cat called Miso.", "Nice."), "Cat?")), tmp_path / "short", "rag-turn")
    assert caplog.records == []


def test_a_lone_character_finds_the_words_it_stands_in():
    ((right, wrong),) = bm25_scores(["我领养了一只橘猫。", "今天天气真不错。"], ["猫"])
    assert right > 0 and wrong == 0


def test_training_tells_what_the_rules_cannot_read(written, caplog):
    chinese, long = SCRIPTS["chinese"], "I adopted a cat called Miso in May 2023. " * 60
    path = written(dialogue_of(chinese[:2], "?", "a"), dialogue_of((long, "I moved to Leeds last week."), "?", "b"))
    scheme, embedder = FourAgents(PromptConfig()), Embedder()
    builds = expert_builds(load(path), embedder, scheme, "training")
    warn_of_lost_text(Corpus(train=builds[:1], held_out=builds[1:]), scheme, embedder)
    assert "7 of 14 turns are in another script" in messages(caplog, UNREAD)[0]
    assert messages(caplog, EMPTY) == ["expert: nothing was stored of 1 of 2 dialogues, such as a"]
    assert messages(caplog, CUT)[0].startswith("texts longer than the embedding model reads: 1;")
    caplog.clear()
    english = expert_builds(
        load(written(dialogue_of(("I adopted a cat in May 2023.", "Nice."), "?"))), embedder, scheme, ""
    )
    warn_of_lost_text(Corpus(train=english), scheme, HashEmbedder())
    assert caplog.records == []


def test_a_memory_written_by_rules_tells_what_they_cannot_read(tmp_path, caplog):
    with Memory(tmp_path / "a.db") as memory:
        memory.add([{"role": "user", "content": SCRIPTS["chinese"][0]}])
        assert "1 of 1 turns are in another script" in messages(caplog, UNREAD)[0]
        caplog.clear()
        memory.add([{"role": "user", "content": "I adopted a cat called Miso."}])
        assert messages(caplog, UNREAD) == []
