"""The app in a shell: `wan-animate run | preview | demo | schema`. Drives the same App as the platform does.

Progress and messages go to stderr, the output as JSON to stdout. Exit code 0: done; 1: failed; 2: the request
or its files cannot be used as they are; 130: cancelled with Ctrl-C.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import shutil
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from inferencesh import BaseAppOutput, File
from pydantic import ValidationError
from tqdm import tqdm

from .inference import FILE_FIELDS, App, AppInput, AppOutput, AppSetup, PreviewInput, PreviewOutput
from .wan.runtime.errors import InvalidInput, WanAnimateError

Shown = AppOutput | PreviewOutput

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_CANCELLED = 1, 2, 130

DEMO_WITHOUT_GPU = {"resolution_width": 320, "resolution_height": 256, "sampling_steps": 4}
"""A size and a number of steps that a two-core machine finishes in about a minute."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the `wan-animate` command; returns the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.ERROR, stream=sys.stderr)
    try:
        # The SDK reports its downloads on stdout, which belongs to the result.
        with contextlib.redirect_stdout(sys.stderr):
            answer = options.command(options)
    except (InvalidInput, ValidationError, json.JSONDecodeError) as error:
        return _fail(sentence(error), EXIT_BAD_INPUT)
    except WanAnimateError as error:
        return _fail(sentence(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return _fail("cancelled; nothing was kept", EXIT_CANCELLED)
    sys.stdout.write(json.dumps(answer, ensure_ascii=False, indent=2) + "\n")
    return 0


def sentence(error: Exception) -> str:
    """An error as one line for a person."""
    if isinstance(error, ValidationError):
        parts = [(".".join(str(part) for part in e["loc"]), e["msg"]) for e in error.errors()]
        return "; ".join(_named(name, text) for name, text in parts)
    if isinstance(error, json.JSONDecodeError):
        return f"the input is not valid JSON: {error}"
    return str(error)


def _named(name: str, text: str) -> str:
    text = text.removeprefix("Value error, ")
    if text.startswith(("is ", "could ")):
        return f"{name} {text}"
    return text if not name or name in text else f"{name}: {text}"


def _fail(text: str, code: int) -> int:
    sys.stderr.write(f"wan-animate: {text}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wan-animate", description="WAN 2.2 Animate in a shell.")
    parser.add_argument("-v", "--verbose", action="store_true", help="log every stage to stderr")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable[[argparse.Namespace], Any], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=function)
        return added

    for name, function, text in (
        ("run", _run, "make a video from an input file"),
        ("preview", _preview, "make only the conditioning, to look at before paying for a GPU"),
    ):
        added = command(name, function, text)
        added.add_argument("input", type=Path, help="JSON file of inputs; paths in it are relative to it")
        added.add_argument("--setup", type=Path, help="JSON file of setup options")
        added.add_argument("--out", type=Path, default=Path(), help="folder for the results (default: here)")

    added = command("demo", _demo, "run the sample, or files of your own, with what this machine can do")
    examples = Path(__file__).parent / "examples"
    added.add_argument("--driving", default=str(examples / "driving.mp4"), help="driving video")
    added.add_argument("--reference", default=str(examples / "reference.jpg"), help="reference image")
    added.add_argument("--mode", default="animation", help="animation or replacement")
    added.add_argument("--out", type=Path, default=Path("out"), help="folder for the results (default: out)")

    command("schema", _schema, "print the JSON schemas of setup, inputs and outputs")
    return parser


def _schema(_: argparse.Namespace) -> dict[str, Any]:
    return {
        "setup": AppSetup.model_json_schema(),
        "run": {"input": AppInput.model_json_schema(), "output": AppOutput.model_json_schema()},
        "preview": {"input": PreviewInput.model_json_schema(), "output": PreviewOutput.model_json_schema()},
    }


def _run(options: argparse.Namespace) -> dict[str, Any]:
    setup, request = _read_setup(options.setup), AppInput.model_validate(_read_input(options.input))
    output = asyncio.run(_use_app(setup, lambda app: app.run(request)))
    return _delivered(output, options.out, {"output_video": "output", "preview_video": "preview"})


def _preview(options: argparse.Namespace) -> dict[str, Any]:
    setup, request = _read_setup(options.setup), PreviewInput.model_validate(_read_input(options.input))
    output = asyncio.run(_use_app(setup, lambda app: app.preview(request)))
    return _delivered(output, options.out, {"preview_video": "preview", "contact_sheet": "contact-sheet"})


def _demo(options: argparse.Namespace) -> dict[str, Any]:
    from .wan.runtime.device import usable_gpu  # noqa: PLC0415 - loads torch; `schema` need not

    fields = {"driving_video": options.driving, "reference_image": options.reference, "mode": options.mode}
    setup = AppSetup()
    if usable_gpu() is None:
        setup = AppSetup(model="smoke")
        fields |= DEMO_WITHOUT_GPU
        sys.stderr.write(
            "no usable GPU here: real preprocessing, then the smoke model at a small size; "
            "what its picture shows is not meaningful\n"
        )
    request = AppInput.model_validate(fields | {"preview": True})
    output = asyncio.run(_use_app(setup, lambda app: app.run(request)))
    names = {"output_video": "demo", "preview_video": "demo-preview"}
    assert isinstance(output, AppOutput)
    assert output.preview_video is not None  # asked for above
    sheet = Path(str(output.preview_video.path)).with_suffix(
        ".png"
    )  # production.py puts it beside the preview
    shutil.move(sheet, _made(options.out) / "demo.png")
    answer = _delivered(output, options.out, names, replace=True)
    return answer | {"contact_sheet": {"path": str((options.out / "demo.png").resolve())}}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise InvalidInput(f"{path} must hold a JSON object, not a {type(data).__name__}")
    return data


def _read_setup(path: Path | None) -> AppSetup:
    """The setup, with the paths of LoRA files made absolute: they are relative to the setup file."""
    data = {} if path is None else _read_json(path)
    for lora in data.get("loras") or ():
        if path is not None and isinstance(lora, dict) and isinstance(source := lora.get("source"), str):
            beside = path.parent / Path(source).expanduser()
            lora["source"] = str(beside.resolve()) if beside.is_file() else source
    return AppSetup.model_validate(data)


def _read_input(path: Path) -> dict[str, Any]:
    """The request, with local paths made absolute: they are relative to the input file."""
    data = _read_json(path)
    for name in FILE_FIELDS:
        value = data.get(name)
        if isinstance(value, str):
            data[name] = _absolute(value, path.parent)
        elif isinstance(value, dict):
            data[name] = {
                k: _absolute(v, path.parent) if k in ("path", "uri") else v for k, v in value.items()
            }
    return data


def _absolute(address: Any, folder: Path) -> Any:  # noqa: ANN401 - whatever stands in the JSON; the model checks it
    if not isinstance(address, str) or not address or address.startswith(("http://", "https://", "data:")):
        return address
    return str((folder / Path(address).expanduser()).resolve())


def _delivered(
    output: BaseAppOutput, folder: Path, names: dict[str, str], *, replace: bool = False
) -> dict[str, Any]:
    """Move the files of a result into `folder`; existing files are kept unless `replace` says otherwise."""
    _made(folder)
    for field, stem in names.items():
        file: File | None = getattr(output, field)
        if file is None or file.path is None:
            continue
        made = Path(file.path)
        target = folder / f"{stem}{made.suffix}"
        target = target if replace else _free(target)
        shutil.move(made, target)
        setattr(output, field, File(path=str(target.resolve())))
        intermediates = (
            made.parent / "intermediates"
        )  # production.py puts them there, where setup asks for them
        if intermediates.exists():
            shutil.move(intermediates, _free(folder / "intermediates"))
    return output.model_dump(mode="json")


def _free(target: Path) -> Path:
    """`target`, or where that exists the first of target-2, target-3, … that does not."""
    number, free = 2, target
    while free.exists():
        free = target.with_name(f"{target.stem}-{number}{target.suffix}")
        number += 1
    return free


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def _use_app(setup: AppSetup, call: Callable[[App], AsyncGenerator[Shown, None]]) -> Shown:
    """Setup, one call watched to its end, unload: the platform's life cycle."""
    app = App()
    try:
        await app.setup(setup)
        output = None
        with _Display() as display:
            snapshots = call(app)
            async with contextlib.aclosing(snapshots):
                async for output in snapshots:
                    display.show(output)
        if output is None:
            raise RuntimeError("the app ended without a result")
        return output
    finally:
        await app.unload()


class _Display:
    """Progress on stderr: a bar on a terminal, a line a stage elsewhere."""

    def __enter__(self) -> "_Display":
        self._stage = ""
        self._bar = None
        if sys.stderr.isatty():
            layout = "{percentage:3.0f}% |{bar:30}| {desc}"
            self._bar = tqdm(total=100, file=sys.stderr, bar_format=layout, dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, output: Shown) -> None:
        left = f", {output.eta_s:.0f} s left" if output.eta_s else ""
        if self._bar is not None:
            self._bar.n = round(100 * output.progress)
            self._bar.set_description_str(output.stage + left)
        elif output.stage != self._stage:
            sys.stderr.write(f"{output.progress:4.0%} {output.stage}{left}\n")
        self._stage = output.stage


if __name__ == "__main__":
    sys.exit(main())
