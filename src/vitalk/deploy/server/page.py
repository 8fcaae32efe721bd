"""The web page."""

from fastapi import FastAPI

from .service import Service


def mount_page(app: FastAPI, service: Service) -> None:
    """Mount the page at /."""
