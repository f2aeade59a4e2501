"""Serve a model: POST an image, get its uncertainty.

python docs/serve.py models/ranking-0.safetensors
curl --data-binary @photo.jpg 'http://127.0.0.1:8000/score?embedding=true'

Needs the extra `serve`. Only this machine is answered: docs/serving.md says how others can be.
"""

import asyncio
import math
from typing import Any

import torch
import typer
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from torch import Tensor

import askance
from askance.features.views import decode

LARGEST = 20 << 20  # bytes of an image
REQUESTS = 256  # at a time; to more the answer is 503


class Batches:
    """Embeds together the images of `patience` seconds, and those that come in the meantime."""

    def __init__(self, model: askance.Model, size: int, patience: float) -> None:
        self.model, self.size, self.patience = model, size, patience
        self.turn = asyncio.Lock()
        self.open: list[Tensor] | None = None

    async def answer(self, image: Tensor) -> dict[str, Any]:
        """Return what is known of an image."""
        if self.open is None or len(self.open) == self.size:
            self.open = []
            self.task = asyncio.create_task(self.embed(self.open))
        place, task = len(self.open), self.task
        self.open.append(image)
        return (await asyncio.shield(task))[place]  # whoever goes leaves the others their answer

    async def embed(self, images: list[Tensor]) -> list[dict[str, Any]]:
        """Wait for the turn, and embed all that have come until then."""
        async with self.turn:
            await asyncio.sleep(self.patience)
            if images is self.open:
                self.open = None
            return await asyncio.to_thread(self.rows, images)

    @torch.inference_mode()
    def rows(self, images: list[Tensor]) -> list[dict[str, Any]]:
        """Embed images."""
        embedding, uncertainty = self.model(torch.stack(images).to(self.model.device))
        columns = uncertainty, self.model.percentile(uncertainty), embedding
        return [
            {"uncertainty": u, "percentile": None if math.isnan(p) else p, "embedding": e}
            for u, p, e in zip(*(column.tolist() for column in columns), strict=True)
        ]


async def received(request: Request) -> bytes:
    """Return what was posted, unless it is huge."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > LARGEST:
            raise HTTPException(413, f"expected an image of at most {LARGEST:,} bytes")
    return bytes(content)


def main(
    source: str, weights: str = "", port: int = 8000, batch: int = 32, patience: float = 0.005
) -> None:
    """Serve what `askance.load` finds at SOURCE."""
    model, app = askance.load(source, weights), FastAPI()
    batches = Batches(model, batch, patience)

    @app.post("/score")
    async def score(request: Request, embedding: bool = False) -> dict[str, Any]:
        content = await received(request)
        try:
            image = await asyncio.to_thread(lambda: model.preprocess(decode(content)))
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        answer = await batches.answer(image)
        return answer if embedding else {n: x for n, x in answer.items() if n != "embedding"}

    uvicorn.run(app, port=port, limit_concurrency=REQUESTS, log_level="warning")


if __name__ == "__main__":
    typer.run(main)
