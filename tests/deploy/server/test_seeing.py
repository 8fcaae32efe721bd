import asyncio
from pathlib import Path

import pytest

from vitalk.deploy.runtime import Eye
from vitalk.deploy.server.seeing import Sight, from_base64
from vitalk.errors import UserError

CAT = (Path(__file__).parents[3] / "examples" / "cat.png").read_bytes()


class Watched(Eye):
    """Notes how many pictures come at once."""

    seen = []

    def logits(self, batch):
        self.seen.append(len(batch))
        return super().logits(batch)


def see_all(pictures, **how):
    async def run():
        eye = Watched.load()
        eye.seen.clear()
        sight = Sight(eye, **{"batch": 4, "linger": 0.05, "pixels": 10**6, **how})
        sight.start()
        found = await asyncio.gather(*(sight.see(p, 3) for p in pictures), return_exceptions=True)
        await sight.stop()
        return found, eye.seen

    return asyncio.run(run())


def test_pictures_are_read_together_and_each_gets_its_own():
    found, sizes = see_all([CAT] * 6)
    alone = Eye.load().see(Path(__file__).parents[3] / "examples" / "cat.png", 3)
    assert max(sizes) > 1 and max(sizes) <= 4 and sum(sizes) == 6
    for seen in found:
        assert [label for label, _ in seen] == [label for label, _ in alone]
        assert abs(seen[0][1] - alone[0][1]) < 1e-4


def test_one_bad_picture_does_not_spoil_the_others():
    found, sizes = see_all([CAT, b"no picture", CAT])
    assert found[0] == found[2] and isinstance(found[1], UserError) and sum(sizes) == 2


def test_a_model_that_fails_tells_everyone_and_goes_on():
    class Broken(Eye):
        def logits(self, batch):
            raise RuntimeError("broken")

    async def run():
        sight = Sight(Broken.load(), 4, 0.01, 10**6)
        sight.start()
        first = await asyncio.gather(sight.see(CAT, 1), sight.see(CAT, 1), return_exceptions=True)
        again = await asyncio.gather(sight.see(CAT, 1), return_exceptions=True)
        await sight.stop()
        return first + again

    assert [type(e) for e in asyncio.run(run())] == [RuntimeError] * 3


@pytest.mark.parametrize("text", ["a", "äö", "data:image/png;base64,!", "AAA"])
def test_what_is_no_base64(text):
    with pytest.raises(UserError, match="base64"):
        from_base64(text)


def test_base64_with_and_without_its_head():
    assert from_base64("aGk=") == from_base64("data:image/png;base64,aGk=") == b"hi"
