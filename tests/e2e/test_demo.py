"""`finity demo` against the running suite, through its real gateway."""

import re
from collections.abc import Iterator

import pytest

from suite import state
from suite.addresses import free
from suite.demo import chart
from suite.stack import Stack
from tests.suite.terminal import finity, plain_environment


@pytest.fixture(scope="module")
def stack(stores: dict[str, str]) -> Iterator[Stack]:
    """The suite as processes of its own, on a database of its own."""
    with state.scratch("finity demo ") as directory:
        environment = plain_environment(directory, **stores)
        with Stack(directory, environment=environment, addresses=free(), durable=False) as running:
            yield running


def test_the_story_is_told_to_its_end_as_often_as_one_likes(stack: Stack) -> None:
    for _ in range(2):
        ended = finity(stack.directory, "demo")
        assert ended.returncode == 0, ended.stderr
        story = ended.stdout
        assert re.findall(r"^(\d)  \w", story, re.MULTILINE) == list("1234567")
        assert re.search(r"accepted +8,819\n +duplicate +0\n +rejected +0\n", story), story
        assert "ada     12,100 granted   - 10,812 used   = 1,288 available" in story
        assert "busiest 5 minutes of 8,819 calls:" in story
        assert "busiest 60 minutes of 8,819 calls:" in story
        assert "HTTP 400" in story
        assert '"reason": "NO_CREDITS"' in story
        assert '"balance": "1288"' in story
        assert not any(line.endswith(" ") for line in story.splitlines())


def test_another_gateway_is_told_with_its_service(stack: Stack) -> None:
    ended = finity(stack.directory, "demo", "--gateway", stack.gateway_url)
    assert ended.returncode == 0, ended.stderr
    nobody = f"http://127.0.0.1:{free().gateway_port}"
    ended = finity(stack.directory, "demo", "--gateway", nobody)
    assert ended.returncode == 1
    assert f"Error: The gateway at {nobody} gave no answer" in ended.stderr
    assert "must be a URL" in finity(stack.directory, "demo", "--gateway", "localhost").stderr


def test_without_a_suite_one_sentence_says_so() -> None:
    with state.scratch() as directory:
        ended = finity(directory, "demo")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"Error: No suite runs from {directory}: start it with `make run` in another terminal.\n"
    )


def test_bars_are_as_long_as_their_share() -> None:
    assert chart.bar(1.0) == "█" * chart.WIDTH
    assert chart.bar(0.5) == "█" * (chart.WIDTH // 2)
    assert chart.bar(0.0) == ""
    assert chart.bar(1 / chart.WIDTH / 8) == "▏"
