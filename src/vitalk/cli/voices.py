"""`vitalk voices`: what can speak here."""

import json
from typing import Annotated

import typer


def voices(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """List the voices: those that ship with the package and those in the user's folder of voices.

    Example: vitalk voices
    """
    from vitalk.speech.voice import Voice
    from vitalk.speech.voice import voices as known

    rows = []
    for name, path in known().items():
        about = Voice.load(path).about
        rows.append({"name": name, "lang": about["lang"], "rate": about["rate"],
                     "speakers": about.get("speakers") or [], "licence": about.get("licence", ""),
                     "megabytes": round(path.stat().st_size / 1e6, 1), "file": str(path)})  # fmt: skip
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        who = f"  speakers: {', '.join(row['speakers'])}" if row["speakers"] else ""
        print(f"{row['name']:<16} {row['lang']:<8} {row['rate']} Hz  {row['megabytes']} MB  {row['licence']}{who}")
    if not rows:
        print("no voice is installed; `vitalk speak --voice FILE.onnx` takes a voice file")
