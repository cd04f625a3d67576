"""What two ranks are launched with: `RUN_FILE OUTPUT`. Mistakes that one of them meets, or both, and who says them."""

import sys
from collections.abc import Callable
from typing import NoReturn
from unittest.mock import patch

import pytest

from lm.cli import main as braid
from lm.errors import UserError
from lm.train import distributed


def refuse(message: str) -> Callable[..., NoReturn]:
    def refusing(*_: object) -> NoReturn:
        raise UserError(message)

    return refusing


def interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def check(place: str, rank_0: Callable[..., object] | None, rank_1: Callable[..., object] | None) -> int:
    """The exit code of a training that meets another function of ours at `place`."""
    function = (rank_0, rank_1)[distributed.launched_rank()]
    run_file, output = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    words = ["train", run_file, f"train.output_dir={output}", "train.steps=2"]
    try:
        if function is None:
            return braid(words)
        with patch(place, function):
            return braid(words)
    except SystemExit as ended:
        return int(ended.code or 0)


def main() -> None:
    rank = distributed.launched_rank()
    assert check("lm.train.start.require_precision", None, refuse("machine of one")) == 2
    assert check("lm.train.start.require_precision", refuse("both machines"), refuse("both machines")) == 2
    assert check("lm.train.loop.Training.__init__", refuse("apart, but alike"), refuse("apart, but alike")) == 2
    # Other ranks are elsewhere, where nothing can be agreed on.
    assert check("lm.train.loop.Training.resume", interrupted, refuse("only one")) == (130, 2)[rank]
    # What rank 0 alone does, it does for all.
    assert check("lm.train.log.MetricsFile.truncate_after", refuse("broken metrics"), None) == 2
    assert check("lm.train.folder.RunFolder.save_config", refuse("no room"), None) == 2
    world = distributed.join()
    assert world.agree(lambda: rank) == rank
    with pytest.raises(UserError, match=r"^rank 1: of 1$"):
        world.agree(lambda: refuse("of 1")() if rank else None)
    distributed.leave_at_exit()


if __name__ == "__main__":
    main()
