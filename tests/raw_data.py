"""Raw files of the datasets that membuilder.instances builds, as small as they can be and made up."""

import gzip
import json
from pathlib import Path

from membuilder.datasets.parquet import write_table

LABELS = ("alarm", "lights", "music", "news", "rain", "shop", "train", "work")


def paragraph(article: int, number: int) -> dict:
    """Four sentences, each with a question; the third holds an abbreviation."""
    town, year = f"Town{article}x{number}", 1000 + 10 * article + number
    text = [
        f"{town} was founded in {year} by settlers from the north.",
        f"Its market sells {number + 3} kinds of salt.",
        f'The mayor, Dr. Ivo Lund{number} of {town}, opened "The {town} Mill" in spring.',
        f"On the river {town} keeps {article + 20} boats.",
    ]
    answers = (str(year), f"{number + 3} kinds", f"Ivo Lund{number}", str(article + 20))
    asked = (
        f"When was {town} founded?",
        f"How many salts has {town}?",
        f"Who is mayor of {town}?",
        f"Boats of {town}?",
    )
    context, qas, start = " ".join(text), [], 0
    for sentence, answer, question in zip(text, answers, asked, strict=True):
        gold = {"text": answer, "answer_start": context.index(answer, start)}
        qas.append({"id": question, "question": question, "answers": [gold]})
        start += len(sentence) + 1
    return {"context": context, "qas": qas}


def squad(folder: Path, articles: int = 30) -> Path:
    data = [
        {"title": f"Land_{article}", "paragraphs": [paragraph(article, number) for number in range(5)]}
        for article in range(articles)
    ]
    return written(folder / "train-v1.1.json.gz", json.dumps({"version": "1.1", "data": data}))


def hotpotqa(folder: Path, questions: int = 60, published: bool = True) -> Path:
    records = []
    for number in range(questions):
        articles = [
            [f"Hill {number}{part}", [f"Hill {number}{part} is old.", f" It is {number} m high."]] for part in "ab"
        ]
        articles.append([f"Noise {number}", ["Nothing of use."]])
        facts = [[f"Hill {number}a", 1], [f"Hill {number}b", 0 if number % 10 else 7]]  # each tenth names no sentence
        record = {"_id": str(number), "question": f"How high is hill {number}?", "answer": f"{number} m"}
        if published:
            record |= {"context": articles, "supporting_facts": facts}
        else:
            names, sentences = zip(*articles, strict=True)
            titles, numbers = zip(*facts, strict=True)
            record["context"] = {"title": names, "sentences": sentences}
            record["supporting_facts"] = {"title": titles, "sent_id": numbers}
        records.append(record)
    return written(folder / "hotpot_train.json", json.dumps(records))


def pairs(each: int = 60) -> list[tuple[str, str]]:
    return [(f"{label} please number {i} {'now ' * (i % 4)}".strip(), label) for label in LABELS for i in range(each)]


def banking77(folder: Path) -> Path:
    rows = [f'"{text}\n",{label}' for text, label in pairs()]
    return written(folder / "train.csv", "\n".join(["text,category", *rows, rows[0]]) + "\n")


def clinc150(folder: Path) -> Path:
    parts = {"train": pairs(50), "val": pairs()[50:60], "oos_train": [["why", "oos"]]}
    return written(folder / "data_full.json", json.dumps(parts))


def nlu(folder: Path) -> Path:
    rows = [f'train;1;{label};set;"{text} [x : y]";"{text}";"{text}!"' for text, label in pairs()]
    head = "fold1;answerid;scenario;intent;answer_annotation;answer_from_anno;answer_from_user"
    return written(folder / "nlu.csv", "\n".join([head, *rows]) + "\n")


def trec(folder: Path) -> Path:
    lines = [f"{label[:4].upper()}:{label} {text} ?" for text, label in pairs()]
    return written(folder / "train.label", "\n".join([*lines, "LOC:city Where is Caf\u00e9 X ?"]), "latin-1")


def roles(folder: Path, abstracts: int = 400) -> Path:
    lines = []
    for number in range(abstracts):
        told = [
            f"Aim {number} is to learn of things.",
            f"We did {number} trials with care.",
            f"It gave {number} results.",
        ]
        lines.append(json.dumps({"abstract_id": 0, "sentences": told, "labels": ["objective", "method", "result"]}))
    return written(folder / "abstracts.jsonl", "\n".join(lines))


def pubmed(folder: Path, abstracts: int = 400) -> Path:
    roles = "OBJECTIVE\tAim {0} is to learn.\nMETHODS\tWe did @ trials {0}.\nRESULTS\tIt gave {0}.\n"
    blocks = [f"###{number}\n{roles.format(number)}" for number in range(abstracts)]
    return written(folder / "train.txt", "\n".join(blocks))


def books(folder: Path, chapters: int = 3) -> Path:
    lines = []
    for number in range(chapters):
        text = " ".join(f"Anna walked {i} miles with Mr. Brown{number}. She was glad." for i in range(60))
        text += " She saw a lighthouse."
        summary = [{"text": f"One day Anna walks with Mr. Brown{number} to a lighthouse, and the weather is fine."}]
        lines.append({"book_title": f"Book {number % 2}", "text": text, "summary": summary})
    lines.append(lines[0] | {"keywords": ["Anna", "miles"]})
    return written(folder / "chapters.jsonl", "\n".join(map(json.dumps, lines)))


def longmemeval(folder: Path, ids: list[str], words: int = 900) -> Path:
    """A sample for each id, of two sessions dated later for later samples; the second turn of the first is long."""
    records = []
    for number, name in enumerate(ids):
        day = f"{2023 + number // 336}/{number // 28 % 12 + 1:02}/{number % 28 + 1:02} (Mon) 09:00"
        told = [{"role": "user", "content": f"I own {number} cats.", "has_answer": True}]
        told.append({"role": "assistant", "content": f"Good to know about {number}. " * words, "has_answer": False})
        more = [
            {"role": "user", "content": f"Chat {number}."},
            {"role": "assistant", "content": f"Yes.\n\n- a {number}\n- b"},
        ]
        records.append(
            {
                "question_id": name,
                "question_type": "single-session-user",
                "question": f"How many cats do I own, as of {number}?",
                "answer": number,
                "question_date": day,
                "haystack_dates": [day, day.replace("09:00", "08:00")],
                "haystack_session_ids": [f"answer_{number}_1", f"answer_{number}_2"],
                "answer_session_ids": [f"answer_{number}_1", f"answer_{number}_2"],
                "haystack_sessions": [told, more],
            }
        )
    return written(folder / "longmemeval_oracle.json", json.dumps(records))


def perltqa(folder: Path, characters: int = 4, events: int = 12) -> Path:
    """Both files, the second gzipped; each event has a dialogue, and two questions about it and one about nothing."""
    memory, asked = {}, []
    for number in range(characters):
        name, happened, talks, questions = f"Ann{number} Lee", {}, {}, []
        for event in range(events):
            key, day = f"1_{event}", f"2021-0{event % 9 + 1}-1{event % 3}"
            plot = f"{name} planted {event + 3} crooked pear trees near Lake Oz{number}x{event}, and nobody helped."
            happened[key] = {"content": plot, "summary": "s", "Creation Time": day, "Theme": "t"}
            said = [f"{name}: I planted trees again.", f"Bob: At Lake Oz{number}x{event}, I hear."]
            talks[f"{key}#0"] = {"contents": {f"{day} 09:00:00": said}}
            told = {"Reference Memory": key, "Memory Anchors": []}
            questions.append(
                {key: [told | {"Question": f"How many trees has {name} by Lake {event}?", "Answer": f"{event + 3}."}]}
            )
            long = f"She planted them near Lake Oz{number}x{event}, where nothing else was known to grow."
            questions.append({key: [told | {"Question": f"Where was {name} in plot {event}?", "Answer": long}]})
            nowhere = {"Question": f"Who paid {name} for plot {event}?", "Answer": "it is not told by anybody at all"}
            questions.append({key: [told | nowhere]})
        memory[name] = {"profile": {"Protagonist": name}, "social_relationship": {}, "events": happened}
        memory[name]["dialogues"] = talks
        asked.append({name: {"profile": [], "social_relationship": [], "events": questions, "dialogues": []}})
    written(folder / "perltqa_en_v2.json.gz", json.dumps(asked))
    return written(folder / "perltmem_en_v2.json", json.dumps(memory))


def memoryagentbench(folder: Path, facts: str | None = None, asked: tuple[str, str] = ("What is it?", "How many?")):
    """A file for each part, with all kinds of sources and one that is left out."""
    facts = facts or " ".join(f"Hill {number} is {number + 100} m high." for number in range(90))
    examples = "".join(f"{text}\nlabel: {LABELS.index(label)}\n\n" for text, label in pairs(9))
    talk = []
    for day in range(1, 5):
        said = [{"role": "user", "content": f"I own {day} cats."}, {"role": "assistant", "content": "Good. " * 60}]
        talk += [f"Chat Time: 2023/05/0{day} (Mon) 09:30", said]
    book = " ".join(f"Anna walked {number} miles to the lighthouse of Brown." for number in range(90))
    parts = {
        "Accurate_Retrieval": [("ruler_qa1_197K", facts), ("longmemeval_s*", repr(talk)), ("eventqa_full", facts)],
        "Test_Time_Learning": [("icl_nlu_8296shot_balance", examples)],
        "Long_Range_Understanding": [("infbench_sum_eng_shots2", book)],
    }
    strings: list[type] = [str]
    metadata = {"source": str, "question_ids": strings, "question_types": strings, "question_dates": strings}
    columns = {"context": str, "questions": strings, "answers": [strings], "metadata": metadata}
    for part, contexts in parts.items():
        rows = []
        for source, context in contexts:
            told: dict = {"source": source} | dict.fromkeys(metadata.keys() - {"source"})
            if source == "longmemeval_s*":
                told["question_ids"], told["question_types"] = ["q1", "q2"], ["multi-session"] * 2
                told["question_dates"] = ["2023/06/01 (Thu) 10:00"] * 2
            golds = [["It is told of Anna and a lighthouse.", "Anna"], ["4"]]
            rows.append({"context": context, "questions": list(asked), "answers": golds, "metadata": told})
        write_table(folder / f"{part}-00000-of-00001.parquet", rows, columns)


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode(encoding)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path
