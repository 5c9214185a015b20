"""Run the model on a painted mask from the notebook, without blocking it: progress, preview, cancel, before and after."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import ipywidgets
import numpy as np
import traitlets
from PIL import Image

from .. import LabError
from ..config import COVERAGES, DEFAULT_PRESET, DISTILLED_GRAPHS, GRAPHS, PRESETS, PREVIEW_SHARE, SOLVERS, Preset
from ..inpainting.backends import Backend, TorchBackend
from ..inpainting.extending import plan_filling, put_back
from ..inpainting.imaging import check_picture_and_mask, to_bytes
from ..inpainting.loop import Cancelled, Progress, Settings, describe_cost, inpaint_picture, preset, preset_of
from ..inpainting.picture_files import Picture
from ..model.checkpoint import presets_of
from ..port.graphs import Graphs
from ..port.sessions import OnnxBackend
from .mask_painter import MaskPainter, jpeg, message, row
from .widgets import style_of

SHOWN_WIDTH = 720  # px, of preview and result on screen
NAMING = ("solver", "steps", "guidance", "harmonize")  # settings with a control of their own that a preset sets
HARMONIZE = (("with the surroundings", True), ("no, as released", False))
CUSTOM = "Custom"  # what the list of presets calls settings that are none of them


@dataclass
class Weights:
    """A set of weights on one kind of backend, for the panel."""

    make: Callable[[Callable[[str], None]], Backend]  # called as make(tell); what it tells stands in the status line
    name: str = ""  # as a result states it, as it does the precision; empty where nobody knows
    precision: str = ""
    presets: dict[str, Preset] = field(default_factory=PRESETS.copy)  # that these weights are sampled with
    _made: Backend | None = field(default=None, init=False)

    def backend(self, tell: Callable[[str], None]) -> Backend:
        """The backend, made when it is first asked for and kept; where that failed, it is tried again."""
        if self._made is None:
            tell(f"Loading the model with the weights {self.name}." if self.name else "Loading the model.")
            self._made = self.make(tell)
        return self._made


def backends_of(graphs: Graphs, distilled: Graphs | None = None) -> dict[str, tuple[Weights, ...]]:
    """PyTorch and ONNX Runtime on a network's weights, and for a preset of their own on those distilled from them.

    Nothing is loaded or exported before it is used.

    Args:
        graphs: the network, its weights and the precision of ONNX Runtime's graphs.
        distilled: graphs of the same network with weights that were distilled from those of `graphs`; by default `graphs.distilled`.
            Their autoencoder is that of `graphs`.

    Returns:
        What `Inpaint` takes.

    Raises:
        LabError: the distilled weights are damaged, or belong to another network.
    """
    distilled = distilled or graphs.distilled

    def torch(of: Graphs, tell: Callable[[str], None]) -> Backend:
        return graphs.torch_backend if of is graphs else TorchBackend(of.net, graphs.vae)

    def onnx(of: Graphs, tell: Callable[[str], None]) -> Backend:
        def stored(made: Graphs, wanted: tuple[str, ...]) -> dict[str, Path]:
            words = f"of the weights {made.weights_name}: once, but it can take a minute."
            return made.stored(graphs.precision, lambda graph: tell(f"Making the graph {graph} {words}"), wanted)

        if of is graphs:
            stored(graphs, GRAPHS)
            return graphs.onnx_backend
        shared = tuple(graph for graph in GRAPHS if graph not in DISTILLED_GRAPHS)
        return OnnxBackend(stored(graphs, shared) | stored(of, DISTILLED_GRAPHS), graphs.config)

    kinds = {"PyTorch": (torch, "fp32"), "ONNX Runtime": (onnx, graphs.precision)}
    found = [(of, presets_of(of.weights)) for of in (graphs, distilled) if of is not None]
    return {
        label: tuple(Weights(partial(make, of), of.weights_name, precision, presets) for of, presets in found)
        for label, (make, precision) in kinds.items()
    }


class Inpaint(ipywidgets.VBox):
    """A panel that fills what was painted. The same work is done by its buttons and by `start`, `cancel` and `wait`.

    `result` is a trait: the filled picture as a PIL image of the full size, with the profile and the transparency of the
    painter's source, None before the first run. `filled` is the same as a `Picture`, which also says what it was made with.

    Args:
        painter: picture and mask are taken from it when a run starts.
        backends: by the name to choose them by; a function is called for its backend when that is first used. Several `Weights`, as
            of `backends_of`, are one choice: a preset takes the last of them that has it, and settings that are no preset the first.
        settings: what the controls begin with. Strength, guidance interval and init follow the chosen preset; as `CUSTOM` they stay as
            they were, as the noise offset always does.

    Raises:
        LabError: there is no backend.
    """

    result = traitlets.Instance(Image.Image, allow_none=True, read_only=True)

    def __init__(
        self,
        painter: MaskPainter,
        backends: dict[str, Backend | Callable[[], Backend] | tuple[Weights, ...]],
        settings: Settings = preset(DEFAULT_PRESET),
    ) -> None:
        if not backends:
            raise LabError("name at least one backend, as backends_of(bench) does")
        self.painter, self._settings = painter, settings
        self.filled: Picture | None = None
        self._backends = {name: _weights(given) for name, given in backends.items()}
        self._thread: threading.Thread | None = None
        self._cancel = threading.Event()
        self._failure: BaseException | None = None
        self._pace: dict[str, float] = {}  # s a guided step of the last run, by backend
        self._naming = True  # whether a changed control may change the preset's name
        self._pair: tuple[np.ndarray, np.ndarray] | None = None  # before and after, as shown
        super().__init__()
        self._make_controls()
        self.children = [
            row(self.backend, self.preset, self.solver, self.steps, self.guidance, self.harmonize, self.seed, self.coverage),
            row(self._run_button, self._cancel_button, self._bar),
            self._message,
            self._slider,
            self._view,
            style_of(self),
        ]

    def _make_controls(self) -> None:
        start = self._settings
        wide, narrow = {"width": "15rem"}, {"width": "9.5rem"}
        style = {"description_width": "4.5rem"}
        self.backend = ipywidgets.Dropdown(options=list(self._backends), description="Backend", layout=wide, style=style)
        self.preset = ipywidgets.Dropdown(
            options=[*((entry.label, name) for name, entry in PRESETS.items()), (CUSTOM, "")],
            value=preset_of(start, self._presets()), description="Preset", layout={"width": "13rem"}, style=style,
        )  # fmt: skip
        self.solver = ipywidgets.Dropdown(
            options=list(SOLVERS), value=start.solver, description="Solver", layout={"width": "13rem"}, style=style
        )
        self.steps = ipywidgets.BoundedIntText(start.steps, min=1, max=1000, description="Steps", layout=narrow, style=style)
        self.guidance = ipywidgets.BoundedFloatText(
            start.guidance, min=0, max=20, step=0.1, description="Guidance", layout=narrow, style=style
        )
        self.harmonize = ipywidgets.Dropdown(
            options=HARMONIZE, value=start.harmonize, description="Harmonize", layout={"width": "15.5rem"}, style=style,
            tooltip="Keeps the fill's colours within those around it, and brings its fine texture nearer to theirs",
        )  # fmt: skip
        self.seed = ipywidgets.BoundedIntText(
            start.seed, min=0, max=2**31 - 1, description="Seed", layout=narrow, style=style
        )
        self.coverage = ipywidgets.Dropdown(
            options=COVERAGES, value=start.coverage, description="Coverage", layout={"width": "13rem"}, style=style
        )
        self.backend.observe(lambda _: self._take_backend(), "value")
        self.preset.observe(lambda change: self._take_preset(change.new), "value")
        for name in NAMING:
            getattr(self, name).observe(lambda _: self._name_preset(), "value")
        self._run_button = ipywidgets.Button(description="Fill the hole", icon="play", button_style="primary")
        self._cancel_button = ipywidgets.Button(description="Cancel", icon="stop", disabled=True)
        self._run_button.on_click(lambda _: self._start_or_say_why_not())
        self._cancel_button.on_click(lambda _: self.cancel())
        self._bar = ipywidgets.IntProgress(min=0, max=1, layout={"width": "18rem"})
        self._message = ipywidgets.HTML(message("Paint the hole above, then fill it."))
        self._slider = ipywidgets.IntSlider(
            50, 0, 100, description="before | after", readout=False, layout={"width": "22rem", "display": "none"},
            style={"description_width": "6.5rem"},
        )  # fmt: skip
        self._slider.observe(lambda change: self._show_pair(), "value")
        self._view = ipywidgets.Image(
            format="jpeg", layout={"display": "none", "max_width": "100%", "align_self": "flex-start"}
        )

    # -- in Python -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a run in a thread of its own and return at once.

        Raises:
            LabError: one is running already, or picture, mask or settings cannot be used.
        """
        if self._thread is not None and self._thread.is_alive():
            raise LabError("a run is in progress: wait for it or cancel it")
        image, mask = self.painter.image, self.painter.mask
        check_picture_and_mask(image, mask)
        settings, weights = self._chosen_settings(), self._chosen_weights()
        self._cancel.clear()
        self._failure = None
        self._busy(True)
        self._bar.value, self._bar.bar_style = 0, ""
        self._slider.layout.display = "none"
        self._thread = threading.Thread(
            target=self._work, args=(image, mask, settings, weights), name="inpaint", daemon=True
        )
        self._thread.start()

    def _chosen_settings(self) -> Settings:
        return replace(self._settings, **{name: getattr(self, name).value for name in (*NAMING, "seed", "coverage")})

    def _presets(self) -> dict[str, Preset]:
        """What the names of presets mean on the chosen backend."""
        found = dict(PRESETS)
        for weights in self._backends[self.backend.value]:
            found |= weights.presets
        return found

    def _chosen_weights(self) -> Weights:
        own, *others = self._backends[self.backend.value]
        return next((weights for weights in reversed(others) if self.preset.value in weights.presets), own)

    def _take_backend(self) -> None:
        """Set the controls to what the chosen preset is on this backend, or name settings of the reader's own as they are named here."""
        if self.preset.value:
            self._take_preset(self.preset.value)
        else:
            self._name_preset()

    def _take_preset(self, name: str) -> None:
        """Set the controls, and what has none, to a preset; `CUSTOM` leaves them."""
        if name and name != self._preset_now():
            self._settings, self._naming = preset(name, self._presets(), noise_offset=self._settings.noise_offset), False
            for control in NAMING:
                getattr(self, control).value = getattr(self._settings, control)
            self._naming = True

    def _name_preset(self) -> None:
        if self._naming:
            self.preset.value = self._preset_now()

    def _preset_now(self) -> str:
        """The preset that the controls say; none for settings that cannot be run, which are refused when they are to be."""
        try:
            return preset_of(self._chosen_settings(), self._presets())
        except LabError:
            return ""

    def cancel(self) -> None:
        """Stop the run before its next step; the last result stays."""
        self._cancel.set()

    def wait(self, timeout: float | None = None) -> Image.Image:
        """Wait for the run to end and return its picture.

        Raises:
            LabError: no run was started, or `timeout` (s) is over.
            Cancelled: it was cancelled.
            Exception: what went wrong in the run.
        """
        if self._thread is None:
            raise LabError("nothing was started: call start() or run()")
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise LabError(f"still running after {timeout} s: wait longer, or cancel()")
        if self._failure is not None:
            raise self._failure
        return self.result

    def run(self, timeout: float | None = None) -> Image.Image:
        """`start`, then `wait`: for a cell that needs the picture."""
        self.start()
        return self.wait(timeout)

    def picture(self) -> Image.Image:
        """Before and after side by side, or what the painter shows if there is no result: a still."""
        if self._pair is None:
            return self.painter.picture()
        return Image.fromarray(np.concatenate(self._pair, axis=1))

    def _repr_mimebundle_(self, **kwargs):
        return super()._repr_mimebundle_(**kwargs) | {"image/jpeg": jpeg(self.picture())}

    # -- in the thread ---------------------------------------------------------------------------------------------

    def _work(self, image: np.ndarray, mask: np.ndarray, settings: Settings, weights: Weights) -> None:
        began = time.perf_counter()
        try:
            backend = weights.backend(lambda words: setattr(self._message, "value", message(words)))
            watch = _Watch(self, backend, image, mask, settings)
            extension, model = self.painter.extension, {"weights": weights.name, "precision": weights.precision}
            filled = inpaint_picture(backend, self.painter.source, mask, settings, watch, self._cancel, extension, model)
            self._pair, self.filled = (_shown(image), _shown(filled.rgb)), filled
            self.set_trait("result", filled.image())
            seconds = time.perf_counter() - began
            self._pace[backend.name] = watch.pace
            where = f"{backend.name}, {weights.name}" if weights.name else backend.name
            self._message.value = message(f"{where}: filled in {seconds:.1f} s")
            self._bar.value, self._bar.bar_style = self._bar.max, "success"
        except Cancelled as stop:
            self._failure = stop
            self._message.value = message(str(stop))
            self._bar.bar_style = "warning"
        except Exception as error:  # whatever it is belongs under the reader's eyes, and to whoever calls wait()
            self._failure = error
            text = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
            self._message.value = message(text, alarm=True)
            self._bar.bar_style = "danger"
        finally:
            self._show_pair()
            self._busy(False)

    def _busy(self, busy: bool) -> None:
        self._run_button.disabled, self._cancel_button.disabled = busy, not busy

    def _show_progress(self, done: int, total: int, text: str) -> None:
        self._bar.max, self._bar.value = total, done
        self._message.value = message(text)

    def _show_preview(self, picture: np.ndarray) -> None:
        self._show(_shown(picture))

    # -- on screen -------------------------------------------------------------------------------------------------

    def _start_or_say_why_not(self) -> None:
        try:
            self.start()
        except LabError as error:
            self._message.value = message(str(error), alarm=True)

    def _show_pair(self) -> None:
        """Before on the left of the slider's place, after on the right."""
        if self._pair is None:
            self._view.layout.display = "none"
            return
        before, after = self._pair
        edge = round(before.shape[1] * self._slider.value / 100)
        seen = after.copy()
        seen[:, :edge] = before[:, :edge]
        seen[:, max(edge - 1, 0) : edge + 1] = 255
        self._slider.layout.display = None
        self._show(seen)

    def _show(self, picture: np.ndarray) -> None:
        self._view.value = jpeg(Image.fromarray(picture))
        self._view.layout.display = None


class _Watch:
    """The loop's callback: progress at every step, and previews as often as their share of the time allows."""

    def __init__(self, panel: Inpaint, backend: Backend, image: np.ndarray, mask: np.ndarray, settings: Settings) -> None:
        self.panel, self.backend, self.mask, self.coverage = panel, backend, mask, settings.coverage
        self.filled = image  # with the windows that are finished
        size = backend.config.image_size
        self.windows = plan_filling(mask, size, settings.coverage, panel.painter.extension)
        cost = describe_cost(self.windows, size, settings, panel._pace.get(backend.name, 0.0))
        panel._message.value = message(f"{backend.name}: {cost}")
        self.pace = 0.0  # s a guided step so far, previews included; any other counts half
        self.shares = [0.5 if guidance == 1 else 1.0 for guidance in settings.guidances()]
        self.began = time.perf_counter()
        self.previews = 0.0  # s spent on them

    def __call__(self, progress: Progress) -> None:
        done, total = progress.window * progress.steps + progress.step, progress.windows * progress.steps
        whole = sum(self.shares)
        made = progress.window * whole + sum(self.shares[: progress.step])
        self.pace = (time.perf_counter() - self.began) / made
        left = self.pace * (progress.windows * whole - made)
        where = f", window {progress.window + 1} of {progress.windows}" if progress.windows > 1 else ""
        text = f"{self.backend.name}: step {progress.step} of {progress.steps}{where}, {left:.0f} s left"
        self.panel._show_progress(done, total, text)
        ends_window = progress.step == progress.steps
        if done < total and (ends_window or self.previews <= PREVIEW_SHARE * (time.perf_counter() - self.began)):
            self._preview(progress, ends_window)

    def _preview(self, progress: Progress, ends_window: bool) -> None:
        start = time.perf_counter()
        decoded = self.backend.decode(progress.clean / self.backend.config.vae.scaling_factor)
        picture = put_back(to_bytes(decoded), self.filled, self.mask, self.windows[progress.window], self.coverage)
        if ends_window:
            self.filled = picture
        self.panel._show_preview(picture)
        self.previews += time.perf_counter() - start


def _weights(given: Backend | Callable[[], Backend] | tuple[Weights, ...]) -> tuple[Weights, ...]:
    """What the panel was given for one name; of a backend nobody knows the weights' names."""
    return given if isinstance(given, tuple) else (Weights(lambda tell: given if hasattr(given, "decode") else given()),)


def _shown(picture: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3), scaled down to at most `SHOWN_WIDTH` px."""
    height, width = picture.shape[:2]
    if width <= SHOWN_WIDTH:
        return picture
    size = (SHOWN_WIDTH, max(1, round(height * SHOWN_WIDTH / width)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
