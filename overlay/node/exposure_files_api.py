"""The local API of files of exposures. Shapes are those of `exposure_files.py`."""

from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from overlay.daemon.localapi import caller, json_object
from overlay.errors import Exit, UserError
from overlay.node.exposure_files import ExposureFiles
from overlay.node.status import ExposeWish


class _Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says."""

    file: str
    entries: dict[str, ExposeWish] = {}
    lasts: dict[str, Annotated[float, msgspec.Meta(gt=0)]] = {}  # by entry: s from when it was published first
    dry: bool = False
    watch: bool = False


async def _wishes(request: Request) -> _Wishes:
    try:
        return msgspec.convert(await json_object(request), _Wishes)
    except msgspec.ValidationError as error:
        raise UserError("bad-request", f"That cannot be exposed: {error}.", exit_code=Exit.USAGE) from error


def exposure_file_routes(files: ExposureFiles) -> list[Route]:
    async def show(_request: Request) -> Response:
        return JSONResponse({"files": msgspec.to_builtins(files.status())})

    async def apply(request: Request) -> Response:
        wishes = await _wishes(request)
        if wishes.watch and not wishes.dry:
            await files.watch(wishes.file, caller(request))
        outcomes = await files.apply(wishes.file, wishes.entries, caller(request), lasts=wishes.lasts, dry=wishes.dry)
        return JSONResponse({"file": wishes.file, "entries": msgspec.to_builtins(outcomes)})

    async def forget(request: Request) -> Response:
        wishes = await _wishes(request)
        outcomes = await files.forget(wishes.file)
        return JSONResponse({"file": wishes.file, "entries": msgspec.to_builtins(outcomes)})

    return [
        Route("/v1/exposure-files", show, methods=["GET"]),
        Route("/v1/exposure-files", apply, methods=["PUT"]),
        Route("/v1/exposure-files", forget, methods=["DELETE"]),
    ]
