"""The engine as a setup asks for it: networks loaded, made fast, and given the LoRAs of each request.

The only module of `wan` that knows loading, speed and LoRAs at once. Knows no preprocessing and no file of a
request.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from .animator import Animator
from .model.load import LoadProgress, load_models, read_precision, require_gpu
from .model.lora import Lora, LoraSwitch, read_lora
from .model.lora_sources import LoraSource, fetch_lora
from .model.smoke import tiny_lora
from .runtime.errors import OutOfMemory
from .runtime.weights import REGISTRY, FetchProgress, fetch
from .speed.apply import Applied, apply_plan, this_card
from .speed.plan import Card, Load, Plan, after_running_out, choose_plan, with_room

logger = logging.getLogger(__name__)

SMOKE = "smoke"
# What a setup makes room for; a request may need more, and on a small card it can have less.
DEFAULT_LOADS = (Load(width=1280, height=720), Load(width=832, height=480), Load(width=448, height=256))

PresetLora = Literal["turbo", "relighting"]
PRESET_STRENGTH = 1.0  # of both, as published


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """What is decided once, at setup."""

    model: str  # "smoke" or the 14B model
    precision: str = "auto"
    attention: str = "auto"
    compiled: bool = True
    loras: tuple[LoraSource, ...] = ()  # for every request


class Engine:
    """Networks on their device. Serves one request at a time; keeps nothing of it but caches by content."""

    def __init__(self, applied: Applied, *, is_smoke: bool = False) -> None:
        """`is_smoke`: the published LoRAs do not fit the tiny network, which gets tiny ones of its own."""
        self.models = applied.models
        self.animator = Animator(applied.models)
        self._applied = applied
        self._is_smoke = is_smoke
        self._switch = LoraSwitch(applied.models.transformer, device=applied.models.device)
        self._own: tuple[tuple[Lora, float], ...] = ()
        self._presets: dict[PresetLora, Lora] = {}
        self._warm: set[tuple[str, ...]] = {()}  # the LoRAs, by name, that compiled code exists for

    def use(self, sources: Sequence[LoraSource]) -> None:
        """Run every request with these LoRAs. Raises InvalidInput, ModelFilesBroken, DiskFull."""
        files = [(fetch_lora(one.source), one.strength) for one in sources]
        self._own = tuple((read_lora(path, shapes=self._switch.shapes), at) for path, at in files)
        self._set_loras(())

    def fetch_presets(
        self, names: Sequence[PresetLora], *, on_progress: Callable[[FetchProgress], None] = lambda _: None
    ) -> None:
        """Have these LoRAs in memory: each is fetched and read at its first use.

        What `on_progress` raises (Cancelled) ends it. Raises ModelFilesBroken or DiskFull.
        """
        for name in names:
            if name not in self._presets:
                self._presets[name] = self._read_preset(name, on_progress)

    def make_ready(self, load: Load, *, presets: Sequence[PresetLora]) -> None:
        """Switch to a request's LoRAs and make room for its clips; `fetch_presets` comes first.

        A clip too large beside the resident transformer moves that to the host, for good. Raises OutOfMemory,
        saying what would fit, where that does not help either.
        """
        wanted = tuple((self._presets[name], PRESET_STRENGTH) for name in presets)
        branches = sum(lora.branch_bytes for lora, _ in (*self._own, *wanted))
        if self.models.device.type == "cuda":
            load = replace(load, lora_bytes=float(branches))
            plan = with_room(self._applied.plan, this_card(self.models.device), load)
            if plan != self._applied.plan:
                logger.info("this clip needs the card's memory: the transformer is streamed from here on")
                self._applied.stream_transformer()
                self._warm.clear()  # other modules compute from here on
        self._set_loras(wanted)

    def out_of_memory(self, load: Load | None) -> str:
        """One sentence for who ran out of the GPU's memory, in the middle of such a clip if that is known."""
        if load is None or self.models.device.type != "cuda":
            return "the GPU's memory ran out: end other programs that use it, or use a larger GPU"
        return after_running_out(this_card(self.models.device), load)

    def _set_loras(self, presets: tuple[tuple[Lora, float], ...]) -> None:
        self._switch.set((*self._own, *presets))
        names = tuple(lora.source for lora, _ in self._switch.active)
        if names not in self._warm:  # other ranks are other code
            self._applied.warm_up()
            self._warm.add(names)

    def _read_preset(self, name: PresetLora, on_progress: Callable[[FetchProgress], None]) -> Lora:
        if self._is_smoke:
            return tiny_lora(name, shapes=self._switch.shapes)
        weights = REGISTRY[name]
        folder = fetch([weights], on_progress=on_progress)[name]
        return read_lora(folder / weights.patterns[0], shapes=self._switch.shapes)


def open_engine(
    setup: EngineSetup, *, cache_dir: Path, on_progress: Callable[[LoadProgress], None] = lambda _: None
) -> Engine:
    """Fetch, load and make fast what `setup` names. `cache_dir` keeps compiled code.

    Raises SetupFailed (no GPU, an attention kernel that cannot run here, broken files), OutOfMemory where
    nothing fits, DiskFull, and what `on_progress` raises.
    """
    if setup.model == SMOKE:
        device = torch.device("cpu")
        plan = Plan(
            attention=setup.attention,
            compiled=False,
            transformer="resident",
            encoders="resident",
            peak_bytes=0.0,
        )
    else:
        device = require_gpu()
        read_precision(setup.precision)
        plan = _plan_for(this_card(device), setup)
        logger.info(
            "plan: transformer %s, encoders %s, %.1f GB at most",
            plan.transformer, plan.encoders, plan.peak_bytes / 1e9,
        )  # fmt: skip
    models = load_models(
        setup.model,
        device=device,
        precision=setup.precision,
        stream_transformer=plan.transformer == "streamed",
        stream_encoders=plan.encoders == "streamed",
        on_progress=on_progress,
    )
    engine = Engine(apply_plan(models, plan, cache_dir=cache_dir), is_smoke=setup.model == SMOKE)
    engine.use(setup.loras)
    return engine


def _plan_for(card: Card, setup: EngineSetup) -> Plan:
    """The plan for the first of the loads that fits; raises OutOfMemory where none does."""
    for load in DEFAULT_LOADS[:-1]:
        try:
            return choose_plan(card, load, attention=setup.attention, compiled=setup.compiled)
        except OutOfMemory as error:
            logger.warning("%s", error)
    return choose_plan(card, DEFAULT_LOADS[-1], attention=setup.attention, compiled=setup.compiled)
