"""Models in lm-evaluation-harness, on its own tasks with local data."""

import json
import math
from importlib import import_module

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from nar_scale.checkpoint import load_consolidated
from nar_scale.commands.harness import main
from nar_scale.errors import UserError
from nar_scale.evaluation import score_continuations
from nar_scale.generation import Request, SamplingOptions, generate_samples
from nar_scale.interop.lm_eval import NarScaleLM
from tests.errors import assert_names, refused
from tests.generation.helpers import KINDS, export

QUESTIONS = [
    {"question": "Is it?", "choices": {"text": ["yes", "no"], "label": ["A", "B"]}, "answerKey": "A", "id": "1"},
    {"question": "Or?", "choices": {"text": ["so", "not at all"], "label": ["A", "B"]}, "answerKey": "B", "id": "2"},
]
PAGES = [{"page": "a text of several windows of the model, this one is."}, {"page": "short"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: export(root / kind, kind) for kind in KINDS}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What the harness's data sets library keeps of local files."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def requests(kind, *arguments):
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def run(models, kind, task, rows, tmp_path, *more):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "results.json"
    command = ["--checkpoint", str(models[kind]), "--tasks", task, "--data-files", f"test={data}"]
    assert main([*command, "--output", str(output), *more]) == 0
    return json.loads(output.read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_a_multiple_choice_task_takes_the_most_probable_answer(models, kind, tmp_path):
    results = run(models, kind, "arc_easy", QUESTIONS, tmp_path, "--mask-samples", "8", "--seed", "3")
    model = load_consolidated(models[kind])
    right = 0
    for row in QUESTIONS:
        context = f"Question: {row['question']}\nAnswer:".encode()
        pairs = [(list(context), list(f" {answer}".encode())) for answer in row["choices"]["text"]]
        scores = [score.log_likelihood for score in score_continuations(model.wrapper, pairs, 8, seed=3)]
        right += scores.index(max(scores)) == row["choices"]["label"].index(row["answerKey"])
    assert results["results"]["arc_easy"]["acc,none"] == right / 2
    about = results["log_likelihoods"]
    assert about["count"] == 4
    exact = kind in ("autoregressive", "hybrid")
    assert about["estimator"].startswith("exact NLL" if exact else "NELBO")
    assert (about["total_standard_error"] > 0) != exact


def test_whole_texts_are_scored_exactly_left_to_right(models, tmp_path):
    results = run(models, "autoregressive", "wikitext", PAGES, tmp_path)
    net, total = load_consolidated(models["autoregressive"]).wrapper.net, 0.0
    for page in PAGES:
        tokens = torch.tensor([256, *page["page"].encode()])
        for start in range(0, len(tokens) - 1, 24):
            end = min(start + 24, len(tokens) - 1)  # the last window sees as much before it as fits
            with torch.no_grad():
                log_probs = net(tokens[None, max(0, end - 24) : end])[0].double().log_softmax(dim=-1)
            total += float(log_probs[start - end :].gather(1, tokens[start + 1 : end + 1, None]).sum())
    size = sum(len(page["page"]) for page in PAGES)
    assert results["results"]["wikitext"]["bits_per_byte,none"] == pytest.approx(-total / math.log(2) / size, rel=1e-5)


@pytest.mark.parametrize("kind", ["non_autoregressive", "block_diffusion"])
def test_whole_texts_have_a_bound_with_a_standard_error(models, kind, tmp_path):
    results = run(models, kind, "wikitext", PAGES, tmp_path, "--mask-samples", "16")
    assert 0 < results["results"]["wikitext"]["bits_per_byte,none"] < 16
    assert 0 < results["log_likelihoods"]["largest_standard_error"] < math.inf
    assert results["log_likelihoods"]["count"] == 4  # windows of 23 tokens after one that is seen


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_generated_as_the_checkpoint_does_and_end_at_a_stop(models, kind):
    model = load_consolidated(models[kind])
    lm = NarScaleLM(model)
    (sample,) = generate_samples(model, [Request(0, prompt="so ")], SamplingOptions(temperature=0, length=13), 1)
    tokens = sample.tokens if kind == "autoregressive" else sample.tokens[3:]
    text = model.tokenizer.decode(tokens).split("\n<|end|>")[0]
    assert text
    whole, shorter = lm.generate_until(
        requests("generate_until", ("so ", {"max_gen_toks": 10}), ("so ", {"max_gen_toks": 10, "until": [text[-1]]}))
    )
    assert whole == text
    assert shorter == text.split(text[-1])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_that_is_too_long_keeps_its_end(models, kind):
    lm = NarScaleLM(str(models[kind]), max_new_tokens=4)
    long, short = lm.generate_until(requests("generate_until", ("é" * 40, {}), ("é" * 10, {})))
    assert long == short


def test_log_likelihoods_of_texts_without_context_begin_a_document(models):
    lm = NarScaleLM(str(models["autoregressive"]))
    ((value, _),) = lm.loglikelihood(requests("loglikelihood", ("", "ab")))
    (score,) = score_continuations(load_consolidated(models["autoregressive"]).wrapper, [([256], [97, 98])])
    assert value == pytest.approx(score.log_likelihood)


def test_the_harness_finds_the_class_by_the_declared_entry_point():
    from pathlib import Path

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    group = text.split('[project.entry-points."lm_eval.models"]\n')[1].splitlines()[0]
    name, target = (part.strip(' "') for part in group.split("="))
    module, _, attribute = target.partition(":")
    assert name == "nar_scale"
    assert getattr(import_module(module), attribute) is NarScaleLM
    assert get_model(name) is NarScaleLM


def test_what_cannot_be_run_is_refused_in_a_line(models, tmp_path, capsys):
    command = ["--checkpoint", str(models["autoregressive"]), "--output", str(tmp_path / "x.json"), "--tasks"]
    assert main([*command, "no_such_task"]) == 2
    assert_names(capsys.readouterr().err.splitlines()[-1], "'no_such_task'")
    assert main([*command, "arc_easy", "--data-files", "test=nowhere.jsonl"]) == 2
    assert_names(capsys.readouterr().err.splitlines()[-1], "nowhere.jsonl")
    (tmp_path / "x.jsonl").write_text("{}\n")
    assert main([*command, "arc_easy", "--data-files", f"dev={tmp_path / 'x.jsonl'}"]) == 2
    assert_names(capsys.readouterr().err.splitlines()[-1], "dev", "validation")


def test_a_checkpoint_without_tokenizer_is_refused(tmp_path):
    with refused(UserError, "tokenizer"):
        NarScaleLM(str(export(tmp_path / "model", "autoregressive", tokenizer=None)))
