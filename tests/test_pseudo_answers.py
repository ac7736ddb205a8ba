"""How right pseudo-data are, by the teacher's answers. python -m pytest tests/test_pseudo_answers.py"""

from pathlib import Path

import pytest
from whole_runs import run

from data import encode_prompt
from eval import greedy
from lab.fast.decode import decode
from lab.files import read_json, write_json, write_jsonl
from lab.paper.pseudo import main, teacher_of
from lab.run.pretrained import load_student


def sample(tok, question: str, answer: list[int], rejected="") -> dict:
    ids = [tok.task_id("colors"), *tok.encode(question), tok.ans_id, *answer, tok.eos_id]
    return {"task": "colors", "rejected": rejected, "ids": ids}


@pytest.fixture
def replayed(lab):
    """A run, its teacher's tokenizer, and a function: question -> the teacher's answer, as ids without EOS."""
    folder = run(lab, "--kd", "word", "--epochs", "8")
    model, tok, config = load_student(teacher_of("colors", folder, read_json(folder / "config.json", dict)))

    def answer(question):
        prompt = encode_prompt(question, "", tok, config["max_len"], config["answer_budgets"]["colors"])
        (ids,) = decode(model, [prompt], [config["answer_budgets"]["colors"]], tok.eos_id, greedy)
        return [i for i in ids if i != tok.eos_id]

    return folder, tok, answer


def test_the_teachers_own_answers_are_right_and_others_are_not(replayed, tmp_path, capsys):
    folder, tok, answer = replayed
    questions = ["a red car color?", "a blue hat color?", "a tan dog color?", "a red dog color?"]
    lines = [sample(tok, q, answer(q)) for q in questions[:3]]
    lines.append(sample(tok, questions[3], tok.encode("nothing of the kind")))
    lines.append(sample(tok, questions[3], tok.encode("no"), rejected="several ANS"))
    write_jsonl(folder / "2-sizes" / "pseudo.jsonl", lines)
    assert main([str(folder), "--json", str(tmp_path / "judged.json")]) == 0
    (line,) = read_json(tmp_path / "judged.json", list)
    assert (line["task"], line["runs"], line["drawn"], line["accepted"], line["equal"]) == ("colors", 1, 5, 4, 75.0)
    assert 0 < line["rouge"] < 75 and "-s0" not in line["run"]  # no bigrams in answers of one word
    assert f"| colors | 1 | 5 | 4 | 75.0 | {line['rouge']} |" in capsys.readouterr().out


def test_a_run_without_its_teacher_is_one_line(replayed, tmp_path, capsys):
    folder, _, _ = replayed
    config = read_json(folder / "config.json", dict)
    write_json(folder / "config.json", config | {"seed": 7})
    assert main([str(folder)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {folder}: ") and Path(config["teachers"]).is_dir()
    (folder / "2-sizes" / "pseudo.jsonl").unlink()
    for wrong, what in ((folder, "no pseudo.jsonl in it"), (tmp_path, "is no run directory")):
        assert main([str(wrong)]) == 1
        printed = capsys.readouterr().err
        assert printed.startswith("error: ") and what in printed and printed.count("\n") == 1
