"""Compares four-choice scores, question by question, with lm-evaluation-harness's. See README.md beside this file."""
import json, os, subprocess, sys, tempfile
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
import lm_eval, torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
import tiny_chat

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
TEMPER = os.path.join(ROOT, "target", "release", "temper")
BOUND = 1e-4  # of a log-probability of about 6, both sides in f32
torch.set_num_threads(2)
failures = 0

PLACES = ["the harbour", "a mountain hut", "the old mill", "the north gate", "a village square", "the long bridge"]
THINGS = ["bread", "a lantern", "three boats", "the bell", "wool", "a map", "salt", "honey"]


def question(i):
    wanted = THINGS[i % 8]
    text = f" What is kept in {PLACES[i % 6]} when the wind is from the {['east', 'west'][i % 2]}, at hour {i}? \n"[i % 3 > 0:]
    choices = [THINGS[(i + 3 * k) % 8] for k in range(4)]
    answer = (7 * i + i // 4) % 4
    choices[0], choices[answer] = choices[answer], wanted
    return {"question": text, "choices": choices, "answer": answer, "subject": "map_reading"}


def task(name, text, delimiter, shots):
    """A multiple-choice task over the local files, in the shape of the harness's own mmlu."""
    return {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": test, "dev": dev}},
            "test_split": "test", "fewshot_split": "dev", "fewshot_config": {"sampler": "first_n", "target_delimiter": " "},
            "num_fewshot": shots, "output_type": "multiple_choice", "target_delimiter": delimiter,
            "description": "The following are multiple choice questions (with answers) about map reading.\n\n",
            "doc_to_text": text + "\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
            "doc_to_choice": ["A", "B", "C", "D"], "doc_to_target": "answer",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}


def ours(form, shots):
    out = os.path.join(work, "predictions.jsonl")
    done = subprocess.run([TEMPER, "eval", "--device", "cpu", "--model", base, "--data", test, "--form", form, "--json",
                           "--shots", dev, "--num-shots", str(shots), "--predictions", out], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout), [json.loads(line) for line in open(out)]


def theirs(name):
    model = HFLM(pretrained=base, dtype="float32", device="cpu", batch_size=4, add_bos_token=True)
    results = lm_eval.simple_evaluate(model=model, tasks=[name], task_manager=TaskManager(include_path=work, include_defaults=False),
                                      log_samples=True, bootstrap_iters=0, verbosity="ERROR")
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    return results["results"][name]["acc,none"], [[float(r[0]) for r in s["filtered_resps"]] for s in samples]


with tempfile.TemporaryDirectory() as work:
    base, test, dev = (os.path.join(work, name) for name in ("base", "test.json", "dev.json"))
    questions, examples = [question(i) for i in range(60)], [question(i) for i in range(100, 105)]
    tiny_chat.write(base, [json.dumps(q) for q in questions + examples], seed=4)
    for path, rows in ((test, questions), (dev, examples)):
        with open(path, "w") as f:
            f.writelines(json.dumps(row) + "\n" for row in rows)
    for form, text, delimiter in (("lm-eval", "{{question.strip()}}", " "), ("mmlu", "{{question}}", "")):
        for shots in (0, 5):
            name = f"temper_{form.replace('-', '_')}_{shots}"
            with open(os.path.join(work, f"{name}.yaml"), "w") as f:
                json.dump(task(name, text, delimiter, shots), f)
            accuracy, scores = theirs(name)
            report, rows = ours(form, shots)
            worst = max(abs(a - b) for row, expected in zip(rows, scores) for a, b in zip(row["scores"], expected))
            best = ["ABCD"[max(range(4), key=s.__getitem__)] for s in scores]
            same = sum(row["predicted"] == b for row, b in zip(rows, best))
            ok = len(rows) == len(scores) == same and abs(report["accuracy"] - accuracy) < 1e-9 and worst <= BOUND
            failures += not ok
            print(f"{'ok  ' if ok else 'FAIL'} {form}, {shots} shots: accuracy {report['accuracy']:.4f} and {accuracy:.4f}, "
                  f"{same} of {len(rows)} answers equal, scores within {worst:.1e}; {report['computed_tokens']} tokens "
                  f"computed of {report['prompt_tokens']} in prompts", flush=True)

print("all checks passed" if not failures else f"{failures} checks failed")
sys.exit(failures != 0)
