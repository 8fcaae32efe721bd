"""Names what is on a picture and says it: the eye and the voice that ship with vitalk, without torch.

python examples/see_and_say.py examples/cat.png demo/answer.wav
"""

import sys
import time
from pathlib import Path

from vitalk import Eye, Voice
from vitalk.deploy.runtime import sentences


def main(picture: str, sound: str) -> None:
    """Classify ``picture``, speak the answer into ``sound``, and tell how long each took."""
    start = time.perf_counter()
    label, share = Eye.load().see(picture)[0]
    seen = time.perf_counter()
    sentence = sentences(label, share)
    audio = Voice.load().speak(sentence)
    said = time.perf_counter()
    Path(sound).parent.mkdir(parents=True, exist_ok=True)
    audio.save(sound)
    print(f"saw   {label} ({share:.0%}) on {picture}, {seen - start:.2f} s")
    print(f"said  {sentence!r} into {sound}, {audio.seconds:.1f} s of speech in {said - seen:.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
