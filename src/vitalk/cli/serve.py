"""``vitalk serve``: an OpenAI-compatible speech and vision server with a web page."""

from typing import Annotated

import typer

from vitalk.errors import UserError


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of this machine's.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8000,
    voice: Annotated[
        list[str] | None, typer.Option(help="A voice's name or file, or a run folder; may be given again.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="What sees: an .onnx file or a packaged model.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes a voice.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each worker [default: the cores, shared out].")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="VITALK_TOKEN", help="Clients must send it: Authorization: Bearer TOKEN.")
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="Where other pages' scripts may call from, e.g. https://example.org.")
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="The web page at /.")] = True,
    waiting: Annotated[int, typer.Option(min=1, help="Requests at a time; more are told to come again.")] = 64,
    characters: Annotated[int, typer.Option(min=1, help="Of one text.")] = 4096,
    megapixels: Annotated[float, typer.Option(min=0.01, max=89, help="Of one picture.")] = 40.0,
    seconds: Annotated[float, typer.Option(min=1, help="For one answer.")] = 120.0,
    ray: Annotated[bool, typer.Option("--ray", help="As a Ray Serve deployment that scales itself.")] = False,
    replicas: Annotated[int, typer.Option(min=1, help="With --ray: copies of the server at most.")] = 4,
) -> None:
    """Serve speech and sight: an OpenAI-compatible API, and a web page to try them.

    Needs the extra serve, with --ray the extra data too.

    Example: vitalk serve --port 8000 --workers 2
    """
    try:
        from vitalk.deploy.server.settings import Settings

        settings = Settings(
            voices=tuple(voice or ()), model=model, workers=workers, threads=threads, token=token,
            origins=tuple(origin or ()), page=page, waiting=waiting, characters=characters,
            pixels=int(megapixels * 1e6), seconds=seconds,
        )  # fmt: skip
        if ray:
            from vitalk.deploy.ray_serve import serve_on_ray

            serve_on_ray(settings, host, port, replicas)
        else:
            from vitalk.deploy.server.run import serve as run

            run(settings, host, port)
    except ModuleNotFoundError as error:
        extra = "serve,data" if ray else "serve"
        raise UserError(f'{error.name} is not installed; run: pip install "vitalk[{extra}]"') from None
