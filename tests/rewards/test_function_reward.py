"""Reward functions as they are written for TRL, from files and modules."""

from __future__ import annotations

import sys
import textwrap

import numpy as np
import pytest

from mlx_sumrl.errors import UserError
from mlx_sumrl.rewards import FunctionReward, load_function


@pytest.fixture
def reward(tmp_path):
    """Write source to a file and load its function ``f`` as a reward."""

    def make(source: str, completions_as: str = "text") -> FunctionReward:
        path = tmp_path / "mine.py"
        path.write_text(textwrap.dedent(source))
        location = f"{path}:f"
        return FunctionReward("f", location, load_function(location), completions_as)

    return make


@pytest.fixture
def groups(completion, group):
    """Two prompts, two completions each, with columns as a data set has them."""
    return [
        group(completion(3, text="a"), completion(1, "length", text="bb"), prompt="P0", summary="s0", size=2),
        group(completion(0, text="ccc"), completion(2, text=""), prompt="P1", summary="s1", size=5),
    ]


RECORD = """
    calls = []
    def f({signature}):
        calls.append(dict(locals()))
        return [0.0] * len(completions)
"""


def recorded(reward: FunctionReward) -> dict:
    return reward.function.__globals__["calls"][0]


def test_arguments_in_trl_order(reward, groups):
    mine = reward(RECORD.format(signature="prompts, completions, completion_ids, **kwargs"))
    mine(groups)
    assert recorded(mine) == {
        "prompts": ["P0", "P0", "P1", "P1"],
        "completions": ["a", "bb", "ccc", ""],
        "completion_ids": [[1, 2, 3, 0], [1], [0], [1, 2, 0]],  # stop token included
        "kwargs": {"summary": ["s0", "s0", "s1", "s1"], "size": [2, 2, 5, 5]},
    }


def test_conversational_arguments(reward, groups):
    mine = reward(RECORD.format(signature="prompts, completions, **kwargs"), "messages")
    mine(groups)
    call = recorded(mine)
    assert call["prompts"][1:3] == [[{"role": "user", "content": p}] for p in ("P0", "P1")]
    assert call["completions"] == [[{"role": "assistant", "content": t}] for t in ("a", "bb", "ccc", "")]


def test_without_kwargs_only_what_the_signature_takes_is_passed(reward, groups):
    mine = reward(RECORD.format(signature="completions, prompts, *, size, other='default'"))
    mine(groups)
    assert set(recorded(mine)) == {"completions", "prompts", "size", "other"}
    assert recorded(mine)["size"] == [2, 2, 5, 5]
    assert recorded(mine)["other"] == "default"


def test_columns_that_would_clash_are_kept_back_and_ragged_ones_are_none(reward, completion, group):
    mine = reward(RECORD.format(signature="prompts, completions, **kwargs"))
    mine(
        [
            group(completion(text="x"), prompts="clash", completion="c", completion_ids="i", a=1),
            group(completion(text="y"), b=2),
        ]
    )
    kwargs = recorded(mine)["kwargs"]
    assert kwargs == {"completion_ids": [[0], [0]], "a": [1, None], "b": [None, 2]}


# The kinds that TRL's documentation shows: token ids, a column to compare with messages, one task of several.
def test_functions_written_for_trl(reward, completion, group):
    groups = [
        group(completion(3, text="four"), completion(1, text="The answer is 4"), answer="4", task="math"),
        group(completion(2, text="blue"), completion(2, text="blue 7"), answer="7", task="talk"),
    ]
    by_ids = reward(
        "def f(completion_ids, **kwargs):\n    return [float(len(ids)) for ids in completion_ids]"
    )
    np.testing.assert_array_equal(by_ids(groups), [[4, 2], [3, 3]])

    by_answer = reward(
        """
        import re
        def f(prompts, completions, answer, **kwargs):
            contents = [completion[0]["content"] for completion in completions]
            return [1.0 if re.search(a, c) else 0.0 for c, a in zip(contents, answer)]
        """,
        "messages",
    )
    np.testing.assert_array_equal(by_answer(groups), [[0, 1], [0, 1]])

    one_task = reward(
        """
        def f(prompts, completions, task, **kwargs):
            return [len(c) if t == "math" else None for c, t in zip(completions, task)]
        """
    )
    np.testing.assert_array_equal(one_task(groups), [[4, 15], [np.nan, np.nan]])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[1, True, None, -2.5]", [[1, 1], [np.nan, -2.5]]),
        ("(0, 1, 2, 3)", [[0, 1], [2, 3]]),
        ("__import__('numpy').arange(4, dtype='float32')", [[0, 1], [2, 3]]),
    ],
)
def test_usable_answers(reward, groups, answer, expected):
    mine = reward(f"def f(prompts, completions, **kwargs):\n    return {answer}")
    np.testing.assert_array_equal(mine(groups), expected)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("[1.0] * 3", "returned 3 values"),
        ("[]", "returned 0 values"),
        ("1.5", r"returned 1\.5 \(float\)"),
        ("None", r"returned None \(NoneType\)"),
        ("'good'", r"returned 'good' \(str\)"),
        ("(x for x in [1, 2, 3, 4])", "generator"),
        ("[1, 2, '3', 4]", "returned '3' for completion 2"),
        ("[1, [2], 3, 4]", r"returned \[2\] for completion 1"),
        ("[1, 2, 3, float('nan')]", "returned nan for completion 3"),
        ("[float('-inf'), 2, 3, 4]", "returned -inf for completion 0"),
    ],
)
def test_unusable_answers_name_the_function_and_what_came_back(reward, groups, answer, complaint):
    mine = reward(f"def f(prompts, completions, **kwargs):\n    return {answer}")
    with pytest.raises(UserError, match=rf"mine\.py:f' .*{complaint}.*") as caught:
        mine(groups)
    assert "list of 4 finite numbers (or None), one per completion" in str(caught.value)


def test_a_bug_in_the_function_keeps_its_own_traceback_and_names_the_function(reward, groups):
    mine = reward("def f(prompts, completions, **kwargs):\n    return {}['missing']")
    with pytest.raises(KeyError, match="missing") as caught:
        mine(groups)
    assert "mine.py:f" in caught.value.__notes__[0]
    assert caught.traceback[-1].path.name == "mine.py"


def test_a_required_argument_that_is_no_column_is_named(reward, groups):
    mine = reward("def f(prompts, completions, trainer_state, **kwargs):\n    return []")
    with pytest.raises(UserError, match=r"requires trainer_state.*\(columns: summary, size\)"):
        mine(groups)


def test_function_of_an_installed_module(tmp_path, monkeypatch):
    (tmp_path / "rewards_of_mine").mkdir()
    (tmp_path / "rewards_of_mine" / "short.py").write_text("def brief(**kwargs):\n    return []\n")
    monkeypatch.syspath_prepend(tmp_path)
    brief = load_function("rewards_of_mine.short:brief")
    assert brief is sys.modules["rewards_of_mine.short"].brief


def test_file_with_a_dataclass_and_a_callable_object(tmp_path):
    path = tmp_path / "objects.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Scale:\n"
        "    by: float\n    def __call__(self, prompts, completions, **kwargs):\n"
        "        return [self.by * len(c) for c in completions]\n\ntwice = Scale(2.0)\n"
    )
    assert load_function(f"{path}:twice")(prompts=["p"], completions=["abc"]) == [6.0]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def g(**kwargs): ...", "'f' does not exist there; the functions of .* are: g"),
        ("f = 3", "'f' is not a function.*are: none"),
        ("def f(:", r"cannot be imported \(SyntaxError"),
        ("import no_such_package", r"cannot be imported \(ModuleNotFoundError.*no_such_package"),
        (
            "def f(completions): ...",
            r"does not take prompts by name; define it as def f\(prompts, completions",
        ),
        ("def f(prompts, completions, /): ...", "does not take prompts and completions by name"),
        ("async def f(**kwargs): ...", "is async"),
    ],
)
def test_what_cannot_be_loaded_is_found_before_any_training(reward, source, complaint):
    with pytest.raises(UserError, match=complaint):
        reward(source)


@pytest.mark.parametrize(
    ("location", "complaint"),
    [
        ("nowhere.py:f", r"there is no file 'nowhere\.py' seen from"),
        ("no_such_module:f", "cannot be imported .*no_such_module"),
        ("json", "is not of the form package.module:function or path/to/file.py:function"),
        ("json:", "is not of the form"),
        ("json:no_such_function", "'no_such_function' does not exist there"),
    ],
)
def test_missing_places(location, complaint):
    with pytest.raises(UserError, match=complaint):
        load_function(location)
