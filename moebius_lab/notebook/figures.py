"""Every plot of the notebooks, in one style. Each function returns a matplotlib figure, closed, ready to show and keep."""

from __future__ import annotations

import math
from itertools import cycle

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ..config import CONDITION_TOKENS, SOLVERS, NetworkConfig

COLOURS = ("#3b6ea8", "#d98841", "#5a9a68", "#b5525c", "#7d6aa8", "#8a8a8a", "#c9a227")
STYLE = {
    "figure.dpi": 110, "savefig.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.axisbelow": True, "axes.grid": False,
    "figure.constrained_layout.use": True, "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
}  # fmt: skip


class Photographs(Figure):
    """A figure of pictures alone: it may be shown at any size, where the words in a chart have to stay readable."""


def _figure(rows: int, columns: int, width: float, height: float, kind: type[Figure] = Figure):
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, FigureClass=kind)
    plt.close(figure)
    return figure, axes


def pictures(named: dict[str, np.ndarray], columns: int = 4, width: float = 10) -> Figure:
    """Pictures (uint8 (H, W, 3) or (H, W)) side by side with their names."""
    columns = min(columns, len(named))
    rows = math.ceil(len(named) / columns)
    first = next(iter(named.values()))
    cell = width / columns
    figure, axes = _figure(rows, columns, width, rows * (cell * first.shape[0] / first.shape[1] + 0.3), Photographs)
    for ax in axes.flat:
        ax.axis("off")
    for ax, (name, picture) in zip(axes.flat, named.items()):
        ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
        ax.set_title(name)
    return figure


def masked(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture with its hole tinted, for showing: uint8 (H, W, 3)."""
    tint = np.array([220, 60, 60])
    a = (mask / 255 * 0.65)[:, :, None]
    return (image * (1 - a) + tint * a).astype(np.uint8)


# -- the lambda layer, drawn -------------------------------------------------------------------------------------------

BOX = 1.7, 0.86  # width and height of a box, in units of the drawing


def lambda_layer(config: NetworkConfig, level: int = 0) -> Figure:
    """Both lambda layers as boxes and arrows, with the shapes that they have at one resolution of `config`.

    Args:
        config: the network.
        level: 0 for the largest latent grid, 1 and 2 for a half and a quarter of its side.
    """
    channels, side = config.block_out_channels[level], config.latent_size >> level
    n, heads, width = side * side, config.heads, channels // config.heads
    figure, axes = _figure(2, 1, 10, 7)
    picture = [
        ("x", "the features", f"C x N = {channels} x {n}", (0, 1)),
        ("q", "what each position asks", f"{heads} heads of {width} x {n}", (2.6, 2)),
        ("k, v", "the context: all positions", f"each {width} x {n}", (2.6, 0.5)),
        ("λc", "one for the whole picture", f"K x V = {width} x {width}", (5.2, 1)),
        ("λp(n)", f"v in {config.position_kernel} x {config.position_kernel} cells around n", f"{n} of {width} x {width}", (5.2, 0)),
        ("y(n)", "q(n) through λc + λp(n)", f"{heads} x {width} = {channels} channels", (7.8, 2)),
    ]  # fmt: skip
    arrows = {"x": ("q", "k, v"), "q": ("y(n)",), "k, v": ("λc", "λp(n)"), "λc": ("y(n)",), "λp(n)": ("y(n)",)}
    _draw(axes[0, 0], f"Self-lambda at {side} x {side} cells: N = {n} positions, K = V = {width}", picture, arrows)
    condition = [
        ("x", "the features", f"C x N = {channels} x {n}", (0, 2)),
        ("c", "the condition, learned", f"{CONDITION_TOKENS} x {config.cross_attention_dim}", (0, 0.5)),
        ("q", "what each position asks", f"{heads} heads of {width} x {n}", (2.6, 2)),
        ("k, v", f"the context: {CONDITION_TOKENS} vectors", f"each {width} x {CONDITION_TOKENS}", (2.6, 0.5)),
        ("λc", "one for the whole picture", f"K x V = {width} x {width}", (5.2, 1)),
        ("λp(n)", "v by numbers learned for n", f"{n} of {width} x {width}", (5.2, 0)),
        ("y(n)", "q(n) through λc + λp(n)", f"{heads} x {width} = {channels} channels", (7.8, 2)),
    ]
    _draw(
        axes[1, 0],
        f"Cross-lambda: the context is {CONDITION_TOKENS} vectors instead",
        condition,
        arrows | {"x": ("q",), "c": ("k, v",)},
    )
    return figure


def _draw(
    ax, title: str, boxes: list[tuple[str, str, str, tuple[float, float]]], arrows: dict[str, tuple[str, ...]]
) -> None:
    """Boxes (symbol, meaning, shape, lower left corner), with arrows from each symbol to those that are made from it."""
    colours = {
        "x": COLOURS[5],
        "c": COLOURS[1],
        "q": COLOURS[0],
        "k, v": COLOURS[1],
        "λc": COLOURS[2],
        "λp(n)": COLOURS[2],
        "y(n)": COLOURS[5],
    }
    (w, h), at = BOX, {symbol: corner for symbol, _, _, corner in boxes}
    for symbol, meaning, shape, (x, y) in boxes:
        style = "round,pad=0,rounding_size=0.08"
        ax.add_patch(
            FancyBboxPatch((x, y), w, h, boxstyle=style, facecolor=(colours[symbol], 0.16), edgecolor=colours[symbol])
        )
        ax.text(x + w / 2, y + 0.65, symbol, ha="center", va="center", fontweight="bold", fontsize=11)
        ax.text(x + w / 2, y + 0.40, meaning, ha="center", va="center", fontsize=7.5)
        ax.text(x + w / 2, y + 0.17, shape, ha="center", va="center", fontsize=7.5, color="#333333")
    for source, targets in arrows.items():
        for target in targets:
            start, end = (at[source][0] + w, at[source][1] + h / 2), (at[target][0], at[target][1] + h / 2)
            ax.add_patch(
                FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color="#555555", shrinkA=3, shrinkB=3)
            )
    ax.set(xlim=(-0.1, 9.6), ylim=(-0.15, 3.0), title=title, aspect="equal")
    ax.axis("off")


def lambda_sizes(config: NetworkConfig) -> Figure:
    """Numbers that a lambda layer holds at each resolution, next to those of an attention map, on a logarithmic axis."""
    figure, axes = _figure(1, 1, 8, 2.8)
    ax, kinds = axes[0, 0], ("attention map, H N N", "position lambdas, N K V", "content lambda, K V")
    for i, kind in enumerate(kinds):
        values = []
        for level, channels in enumerate(config.block_out_channels):
            n, width = (config.latent_size >> level) ** 2, channels // config.heads
            values.append((config.heads * n * n, n * width * width, width * width)[i])
        bars = ax.bar(np.arange(len(values)) + (i - 1) * 0.27, values, width=0.27, label=kind)
        ax.bar_label(bars, [f"{value:,}" for value in values], fontsize=7, padding=1)
    sides = [config.latent_size >> level for level in range(len(config.block_out_channels))]
    ax.set_xticks(range(len(sides)), [f"{side} x {side} cells" for side in sides])
    ax.set(yscale="log", ylabel="numbers", title=f"What one layer of the {config.name} network makes for one picture")
    ax.margins(y=0.25)
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
    return figure


def shares(table: pd.DataFrame, columns: dict[str, str]) -> Figure:
    """Horizontal bars by part: a panel for each column of `table`, titled by `columns[column]`."""
    figure, axes = _figure(1, len(columns), 10, 0.36 * len(table) + 1)
    for i, (ax, (column, title)) in enumerate(zip(axes[0], columns.items())):
        bars = ax.barh(table.index, table[column], color=[COLOURS[j % len(COLOURS)] for j in range(len(table))])
        ax.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
        ax.set_title(title)
        ax.invert_yaxis()
        ax.margins(x=0.18)
        if i:
            ax.set_yticks([])
    return figure


def counts(named: dict[str, dict[str, int]], top: int = 14) -> Figure:
    """How often operators occur, a panel for each graph, the most frequent first."""
    figure, axes = _figure(1, len(named), 10, 0.22 * top + 0.8)
    for ax, (name, counted) in zip(axes[0], named.items()):
        rows = sorted(counted.items(), key=lambda item: -item[1])[:top]
        bars = ax.barh([op for op, _ in rows], [n for _, n in rows])
        ax.bar_label(bars, padding=2, fontsize=8)
        ax.set_title(f"{name}: {sum(counted.values())} nodes")
        ax.invert_yaxis()
        ax.margins(x=0.15)
    return figure


def stacked(table: pd.DataFrame, title: str, unit: str) -> Figure:
    """A horizontal bar for each row of `table`, made up of its columns, with the row's sum at the end."""
    figure, axes = _figure(1, 1, 9, 0.36 * len(table) + 1.1)
    ax, left = axes[0, 0], np.zeros(len(table))
    for column in table:
        bars = ax.barh(table.index, table[column], left=left, label=column)
        left = left + table[column].to_numpy()
    ax.bar_label(bars, [f"{total:.4g}" for total in left], padding=4, fontsize=8)
    ax.set(xlabel=unit, title=title)
    ax.invert_yaxis()
    ax.margins(x=0.1)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def error_growth(errors: dict[str, list[float]], tolerance: float) -> Figure:
    """Largest difference to PyTorch after each denoising step, on a logarithmic axis, with the tolerance."""
    figure, axes = _figure(1, 1, 9, 3.2)
    ax = axes[0, 0]
    for name, values in errors.items():
        ax.semilogy(range(1, len(values) + 1), np.maximum(values, 1e-12), marker="o", markersize=3, label=name)
    ax.axhline(tolerance, color=COLOURS[5], linestyle="--", linewidth=1, label="tolerance of one step")
    ax.set(xlabel="denoising step", ylabel="max |difference|", title="How a rounding error grows along the loop")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def block_errors(errors: dict[str, pd.Series]) -> Figure:
    """Relative error at the end of each block of the denoiser, in its order, a line for each precision."""
    figure, axes = _figure(1, 1, 10, 3.6)
    ax = axes[0, 0]
    for name, values in errors.items():
        ax.semilogy(range(len(values)), values, marker="o", markersize=3, label=name)
        ax.set_xticks(range(len(values)), [block.removeprefix("noise.") for block in values.index], rotation=90, fontsize=7)
    ax.set(ylabel="relative error", title="Where the error is made: after each block")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def step_times(table: pd.DataFrame, title: str = "One guided step") -> Figure:
    """Medians with quartiles (ms) as horizontal bars, a bar for each row of `results.table`, fastest first, one colour a form."""
    rows = table.sort_values("median")
    figure, axes = _figure(1, 1, 9, 0.34 * len(rows) + 0.9)
    ax = axes[0, 0]
    colours = dict(zip(rows["form"].drop_duplicates().sort_values(), cycle(COLOURS)))
    spread = np.abs([rows["median"] - rows["q1"], rows["q3"] - rows["median"]])
    labels = rows["backend"] + ", " + rows["form"]
    bars = ax.barh(labels, rows["median"], xerr=spread, capsize=3, color=[colours[form] for form in rows["form"]])
    ax.bar_label(bars, fmt="%.3g", padding=6, fontsize=8)
    ax.set(xlabel="ms, median and quartiles")
    figure.suptitle(title)  # over the labels too, which are longer than the bars
    ax.invert_yaxis()
    ax.margins(x=0.12)
    return figure


def quality(curves: pd.DataFrame, measures: dict[str, str], presets: dict[str, str]) -> Figure:
    """Means over pictures with their standard errors against evaluations of the network, a panel a measure, a line for each solver and
    schedule.

    Args:
        curves: of `quality.curves`; ways are named "SOLVER, N steps, guided SCHEDULE", or as a whole.
        measures: columns of `curves` and what their panels are called.
        presets: ways that are presets, and what they are called in the plot.
    """
    figure, axes = _figure(1, len(measures), 4.2 * len(measures), 4.2)
    ways = curves.index.to_series().str.split(", ", expand=True)
    lines = curves.groupby((ways[0] + ", " + ways[2].fillna("")).str.strip(", "), sort=False)
    for ax, (measure, title) in zip(axes[0], measures.items()):
        for i, (name, line) in enumerate(lines):
            values, style = line[measure], {"late": "-", "wholly": "--"}.get(str(name).rpartition(" ")[2], "")
            colour = COLOURS[list(SOLVERS).index(name.partition(",")[0])] if "," in name else "black"
            ax.errorbar(line["evaluations"], values["mean"], values["sem"], None, style, color=colour, marker="osv^D"[i % 4],
                        capsize=2, label=name)  # fmt: skip
        for way, preset in presets.items():
            here = curves.loc[[way], "evaluations"].iloc[0], curves.loc[way, (measure, "mean")]
            ax.annotate(preset, here, xytext=(0, 12), textcoords="offset points", ha="center", weight="bold")
        ax.set(xlabel="evaluations of the network", title=title, xscale="log")
        ax.minorticks_off()
        ax.set_xticks((6, 9, 12, 20, 38), ("6", "9", "12", "20", "38"))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=4)
    return figure


def guidance_gains(gains: dict[str, list[float]]) -> Figure:
    """What guidance adds to the predicted picture at each step, root mean square in the latent, a line for each way to sample."""
    figure, axes = _figure(1, 1, 8, 3)
    for name, values in gains.items():
        axes[0, 0].plot((np.arange(len(values)) + 0.5) / len(values), values, marker="o", label=name)
    axes[0, 0].set(
        xlabel="share of the run", ylabel="RMS of the change", title="What guidance adds to the prediction, and when"
    )
    axes[0, 0].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def operator_times(profiles: pd.DataFrame, top: int = 10) -> Figure:
    """Milliseconds of a step by operator, a panel for each backend and form of a results file's profiles."""
    groups = list(profiles.groupby(["backend", "form", "where"], sort=False))
    figure, axes = _figure(len(groups), 1, 8, (0.2 * top + 0.7) * len(groups))
    for ax, ((backend, form, where), rows) in zip(axes[:, 0], groups):
        rows = rows.sort_values("ms", ascending=False)
        bars = ax.barh(rows["operator"].str.slice(0, 40)[:top], rows["ms"][:top])
        ax.bar_label(
            bars, [f"{ms:.3g} ms, {n:g} calls" for ms, n in zip(rows["ms"][:top], rows["calls"])], padding=3, fontsize=8
        )
        ax.set_title(f"{backend}, {form}: {rows['ms'].sum():.3g} ms a step on the {where}")
        ax.invert_yaxis()
        ax.margins(x=0.25)
    return figure


def download_times(sizes_mb: dict[str, float], lines_mbit: tuple[int, ...] = (10, 50, 100, 500)) -> Figure:
    """Seconds that bundles of these sizes (MB) take over lines of these speeds (Mbit/s), computed, not measured."""
    figure, axes = _figure(1, 1, 7, 3)
    ax = axes[0, 0]
    for i, (name, size) in enumerate(sizes_mb.items()):
        x = np.arange(len(lines_mbit)) + (i - (len(sizes_mb) - 1) / 2) * 0.8 / len(sizes_mb)
        bars = ax.bar(x, [size * 8 / line for line in lines_mbit], width=0.8 / len(sizes_mb), label=f"{name}, {size:.0f} MB")
        ax.bar_label(bars, fmt="%.2g", fontsize=7)
    ax.set_xticks(range(len(lines_mbit)), [f"{line} Mbit/s" for line in lines_mbit])
    ax.set(ylabel="seconds", title="First visit: time for the download")
    ax.legend(frameon=False, loc="upper right")
    return figure


def paired_differences(differences: pd.DataFrame, measures: dict[str, str], allowed: dict[str, float]) -> Figure:
    """Each form of the port minus the original, mean and interval, a panel a measure; what is allowed is shaded.

    Args:
        differences: of `dataset.summary.paired`.
        measures: those that have a panel, and what it is called.
        allowed: by measure, the largest difference of a mean either way.
    """
    labels = list(differences.index.unique("label"))
    figure, axes = _figure(1, len(measures), 3.6 * len(measures), 0.4 * len(labels) + 1.2)
    for ax, (measure, title) in zip(axes[0], measures.items()):
        rows = differences.xs(measure, level="measure").reindex(labels)
        spread = np.abs([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
        ax.errorbar(rows["mean"], range(len(labels)), xerr=spread, fmt="o", capsize=3)
        ax.axvline(0, color=COLOURS[5], linewidth=1)
        if measure in allowed:
            ax.axvspan(-allowed[measure], allowed[measure], color=COLOURS[2], alpha=0.15)
        ax.set_yticks(range(len(labels)), labels if ax is axes[0, 0] else [""] * len(labels))
        ax.set(title=title, ylim=(len(labels) - 0.5, -0.5))
        ax.ticklabel_format(axis="x", style="sci", scilimits=(-3, 3))
    return figure


def quality_against_time(means: pd.DataFrame, seconds: pd.Series, measure: str, title: str) -> Figure:
    """A measure's mean with its interval against the median seconds of a fill, a point for each contender.

    Args:
        means: of `dataset.summary.means`.
        seconds: of `dataset.summary.seconds`.
        measure: a measure in `means`.
        title: of its axis.
    """
    figure, axes = _figure(1, 1, 9, 3.6)
    ax, rows = axes[0, 0], means.xs(measure, level="measure")
    for (label, row), colour in zip(rows.iterrows(), cycle(COLOURS)):
        spread = np.nan_to_num(np.abs([[row["mean"] - row["low"]], [row["high"] - row["mean"]]]))
        ax.errorbar(seconds[label], row["mean"], spread, fmt="o", color=colour, capsize=3, label=label)
    ax.set(xscale="log", xlabel="seconds a fill, median, one thread", ylabel=title)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
